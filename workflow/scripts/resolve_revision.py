"""Ask the hub which commit a revision stands for, once; `--forcerun resolve_revision` asks again.

A revision that stood for another commit when its files were fetched is an error that names both commits.
"""

from pathlib import Path

from counterprobe import checkpoints, manifest, runtime

with runtime.job(snakemake, online=True) as job:
    resolved = checkpoints.resolve_hub(job.spec["model"]["repo"], job.wildcards.revision)
    fetched = Path(job.output.resolved).with_name(manifest.NAME)
    checkpoints.check_moved(manifest.read(fetched)["content"] if fetched.exists() else None, resolved)
    job.write_json(checkpoints.write_resolved(resolved))
