"""Fetch one revision into Hugging Face's cache and verify every file of it by its hash."""

from counterprobe import checkpoints, runtime

with runtime.job(snakemake, online=True) as job:
    resolved = checkpoints.read_resolved(job.input.resolved)
    job.write_manifest(job.output.checkpoint, checkpoints.hub_content(resolved, checkpoints.download(resolved)))
