"""Steer the features of a design along every direction, and see what the model says then.

Directions, the position, the layer and the coefficient come from one half of the items and carriers; what is written is
of the other: on-target and off-target flips, the price on neutral tokens, directions that mean nothing beside them.
"""

from counterprobe import designs, runtime, steering

with runtime.job(snakemake) as job:
    design = designs.read(job.input.design)
    learned = job.input.dictionaries or None
    job.write_table(steering.measure(job.input.checkpoint, design, job.spec, job.wildcards, learned, device=job.device))
