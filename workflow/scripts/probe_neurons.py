"""Probe k neurons of every MLP, chosen by five rankings and by search: how few of them tell a feature?

At the primary read position, beside probes on all neurons, random labellings and randomised weights.
"""

from counterprobe import designs, runtime, sparse_neurons

with runtime.job(snakemake) as job:
    design = designs.read(job.input.design)
    job.write_table(
        sparse_neurons.measure(
            job.input.checkpoint, design, job.wildcards.weights, job.spec, job.wildcards, device=job.device
        )
    )
