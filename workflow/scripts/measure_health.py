"""Compare a rung's activations with the trained model's: a rung whose activations collapsed is no control."""

from counterprobe import activations, extraction, runtime

with runtime.job(snakemake) as job:
    job.write_table(
        extraction.health(
            activations.open_store(job.input.trained),
            activations.open_store(job.input.control),
            job.wildcards,
        )
    )
