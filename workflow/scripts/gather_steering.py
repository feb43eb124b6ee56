"""Put the parts of the steering table together, and correlate detection with steering over all of them."""

from counterprobe import detection, runtime

with runtime.job(snakemake) as job:
    job.write_table(detection.gather(job.input))
