"""Describe one revision of a model trained here, so that it is used like a checkpoint of any other source."""

from pathlib import Path

from counterprobe import checkpoints, runtime

with runtime.job(snakemake) as job:
    folder = Path(job.input.training).parent / job.wildcards.revision
    job.write_manifest(job.output.checkpoint, checkpoints.folder_content(folder, source="train"))
