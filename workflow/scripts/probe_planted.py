"""Probe a representation that was planted without any XOR, in the published layout, under every protocol."""

from counterprobe import planted, runtime

with runtime.job(snakemake) as job:
    job.write_table(planted.leak(job.spec, job.wildcards.design, device=job.device))
