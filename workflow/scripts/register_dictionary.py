"""Describe a dictionary that others trained, by size and hash; one on the hub is fetched into Hugging Face's cache first."""

from counterprobe import pretrained, runtime

with runtime.job(snakemake, online=True) as job:
    settings = job.spec["dictionaries"]["pretrained"][job.wildcards.dictionary]
    job.write_manifest(job.output.pretrained, pretrained.register(settings))
