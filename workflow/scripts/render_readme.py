"""Put the verdicts of this run into README.md, and beside it into docs/verdicts.csv: `make readme`."""

from pathlib import Path

from counterprobe import checksum, readme, runtime

with runtime.job(snakemake) as job:
    rows = checksum.read_parquet(job.input.claims).to_pandas().to_dict("records")
    table = readme.verdicts(rows, job.spec["config"])
    page = readme.rendered(Path("README.md").read_text(encoding="utf-8"), table)
    Path("docs/verdicts.csv").write_text(table, encoding="utf-8")
    Path("README.md").write_text(page, encoding="utf-8")
