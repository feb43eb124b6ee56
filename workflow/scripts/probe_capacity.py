"""Probe one layer with families of growing capacity, from the difference of means to a perceptron.

For the pre-registered pair, the XORs that the model needs, and their features, at the primary read position. Under trained
weights also random balanced labellings, what is left of the accuracy above them, and the family at which either peaks.
"""

from counterprobe import activations, capacity, designs, runtime

with runtime.job(snakemake) as job:
    job.write_table(
        capacity.measure(
            activations.open_store(job.input.activations),
            designs.read(job.input.design),
            job.spec,
            job.wildcards,
            device=job.device,
        )
    )
