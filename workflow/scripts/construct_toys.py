"""Write down weights that compute ANDs in superposition; read those, and XORs they were not made for.

The universal-AND construction is measured against width; sizes at which its connection probability exceeds 1
have rows that say so. Networks that give each feature some neurons at random are read beside their analytic
interaction.
"""

from counterprobe import runtime, superposition_cells, superposition_constructed

with runtime.job(snakemake) as job, job.writing(suffix=".parquet") as path:
    superposition_cells.write(superposition_constructed.sweep(job.spec["superposition"]["constructed"]), path)
