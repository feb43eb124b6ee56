"""Does the XOR of two features die with the heads or neurons that compute one of them?

Components are ranked by their effect on a feature, the first of them ablated (zero, mean, resample, maximum entropy), and the
feature, the other one and their XOR probed anew, beside as many random components of the same blocks.
"""

from counterprobe import ablation, designs, runtime

with runtime.job(snakemake) as job:
    design = designs.read(job.input.design)
    job.write_table(ablation.measure(job.input.checkpoint, design, job.spec, job.wildcards, device=job.device))
