"""Describe one revision of a model trained here, so that it is used like a checkpoint of any other source."""

from counterprobe import checkpoints, runtime

with runtime.job(snakemake) as job:
    job.write_manifest(job.output.checkpoint, checkpoints.trained_content(job.input.training, job.wildcards.revision))
