"""Put the findings of every design's audit together."""

from counterprobe import design_audit, runtime

with runtime.job(snakemake) as job:
    job.write_bytes(design_audit.gather(job.input), suffix=".parquet")
