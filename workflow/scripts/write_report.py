"""Write the report: one HTML file with the claims, the figures, the audits, the cost, and how to run any of it again.

Opens from disk and asks no network for anything. Reads tables, figures, notebooks and benchmarks of this experiment.
"""

from pathlib import Path

from counterprobe import report, runtime

with runtime.job(snakemake) as job:
    page = report.render(Path(job.output.page).parent, job.spec["config"], job.spec["overlays"])
    job.write_bytes(page.encode(), "page")
