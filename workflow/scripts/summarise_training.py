"""Count the cells of the layer × step grid in which a feature is read, and say when in training each came first.

Per model, design, read position, protocol and target: cells whose accuracy lies above .75, cells beyond OR, the first
step at which a feature is decodable, and the order in which a pair's features, needed XORs and needless ones appear.
"""

from counterprobe import across_training, designs, runtime, tables

with runtime.job(snakemake) as job:
    job.write_table(
        across_training.summarise(
            tables.read(job.input.probes), {design.name: design for design in map(designs.read, job.input.designs)}
        )
    )
