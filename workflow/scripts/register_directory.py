"""Describe a local Hugging Face folder: its files, their sizes and hashes. It is used where it lies."""

from counterprobe import checkpoints, runtime

with runtime.job(snakemake) as job:
    content = checkpoints.folder_content(job.spec["model"]["path"], source="directory")
    job.write_manifest(job.output.checkpoint, content)
