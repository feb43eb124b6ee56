"""Compare a rung's activations with the trained model's: a rung whose activations collapsed is no control."""

from counterprobe import activations, control_health, runtime

with runtime.job(snakemake) as job:
    job.write_table(
        control_health.compare(
            activations.open_store(job.input.trained), activations.open_store(job.input.control), job.wildcards
        )
    )
