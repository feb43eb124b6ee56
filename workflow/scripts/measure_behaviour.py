"""Ask the model itself: how often is the token that a feature decides the more likely of its two?"""

from counterprobe import behaviour, designs, runtime

with runtime.job(snakemake) as job:
    design = designs.read(job.input.design)
    job.write_table(behaviour.measure(job.input.checkpoint, design, job.spec, job.wildcards, device=job.device))
