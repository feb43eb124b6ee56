"""Read a model layer by layer: two lenses, the rotation of probe directions, and probes against the model's own answers."""

from counterprobe import designs, layerwise, runtime

with runtime.job(snakemake) as job:
    design = designs.read(job.input.design)
    job.write_table(layerwise.measure(job.input.checkpoint, design, job.spec, job.wildcards, device=job.device))
