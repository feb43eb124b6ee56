"""Swap features at the read positions and see what the model says: the signed effect on each feature's own answer.

Moves the residual stream half-way up the model along a target's own effect, both ways, and compares with directions as
long as it that mean something else. Trained weights at the revisions of the ladder.
"""

from counterprobe import activations, causal_use, designs, runtime

with runtime.job(snakemake) as job:
    job.write_table(
        causal_use.measure(
            job.input.checkpoint,
            activations.open_store(job.input.activations),
            designs.read(job.input.design),
            job.spec,
            job.wildcards,
            device=job.device,
        )
    )
