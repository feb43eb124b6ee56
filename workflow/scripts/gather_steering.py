"""Put the parts of the steering table together, and correlate detection with steering over all of them."""

from counterprobe import runtime, steering

with runtime.job(snakemake) as job:
    job.write_table(steering.gather(job.input))
