"""Put the parts of one table together, in sorted order and with a fixed schema: the parts of the current configuration."""

from counterprobe import runtime, tables

with runtime.job(snakemake) as job:
    job.write_table(tables.gather(job.input))
