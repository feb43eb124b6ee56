"""Hold probes against labels and representations that cannot carry the feature,.

Random dichotomies of the cells (selectivity), shuffled labels, random labels per carrier; the model's own activations
with the target's effect subtracted; the same after erasing the target's two features; and the bits that activations add
to the tokens themselves.
"""

from counterprobe import activations, designs, probe_controls, runtime

with runtime.job(snakemake) as job:
    job.write_table(
        probe_controls.measure(
            activations.open_store(job.input.activations),
            designs.read(job.input.design),
            job.spec,
            job.wildcards,
            device=job.device,
        )
    )
