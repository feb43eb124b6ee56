"""Do the components that compute A and those that compute B get into each other's way, and does that make their XOR?

Heads and neurons that two features share against the interaction of the two; how much of each interaction goes when
attention patterns, or MLP inputs, are frozen to those of the text in which one feature is flipped; and what single neurons
do. At the primary read position.
"""

from counterprobe import designs, interference, runtime

with runtime.job(snakemake) as job:
    design = designs.read(job.input.design)
    job.write_table(
        interference.measure(
            job.input.checkpoint, design, job.wildcards.weights, job.spec, job.wildcards, device=job.device
        )
    )
