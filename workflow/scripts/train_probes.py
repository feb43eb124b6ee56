"""Train every probe of one model, revision and weight control on one design.

All targets, folds and regularisation strengths of a layer share one activation matrix, so they are solved together.
Writes one row per seed, position, layer, target, protocol, probe and score, with a 95% interval over items × carriers,
and the fitted directions in the space of the activations.
"""

from counterprobe import activations, designs, probe_grid, runtime

with runtime.job(snakemake) as job:
    grid = probe_grid.train(
        activations.open_store(job.input.activations),
        designs.read(job.input.design),
        job.spec,
        job.wildcards,
        device=job.device,
    )
    job.write_table(grid.scores)
    job.write_tensors(grid.directions)
