"""Measure how the features of a design lie in the activations of one model, revision and weight control.

Exact inference without probes: salience of every parity, how large an interaction is and whether it is gain modulation,
cosines across conditions, parallelism. By probes: generalisation across conditions, shattering dimensionality, margins.
Writes one row per seed, position, layer, target and score, with a 95% interval; what a layout cannot give is NaN with a
note.
"""

from counterprobe import activations, designs, geometry, runtime

with runtime.job(snakemake) as job:
    job.write_table(
        geometry.measure(
            activations.open_store(job.input.activations),
            designs.read(job.input.design),
            job.spec,
            job.wildcards,
            device=job.device,
        )
    )
