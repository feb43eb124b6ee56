"""Compute all ANDs and all XORs of sparse inputs from random and from trained first layers.

Read-offs: least squares, the least maximal error (a linear programme), and the indicator read-off whose error
constant is known beforehand. Losses: mean |error|^q with and without more weight on ones, first layer trained
or frozen.
"""

from counterprobe import runtime, superposition_cells, superposition_genericity

with runtime.job(snakemake) as job, job.writing(suffix=".parquet") as path:
    superposition_cells.write(superposition_genericity.sweep(job.spec["superposition"]["genericity"]), path)
