"""Take the pre-activation of single neurons apart into what every earlier component wrote into the stream.

Of neurons that write towards one token, and of random ones of equal input norm: their tokens, the components that move them
when a feature changes, and the same components exchanged on the direct path.
"""

from counterprobe import designs, neuron_sources, runtime

with runtime.job(snakemake) as job:
    design = designs.read(job.input.design)
    job.write_table(neuron_sources.measure(job.input.checkpoint, design, job.spec, job.wildcards, device=job.device))
