"""Read XORs from random residual networks over copied signs.

k signs with r copies each; writes one row per network and score, and how well each candidate for the
governing ratio of k and r orders the cells.
"""

from counterprobe import runtime, superposition_cells, superposition_redundancy

with runtime.job(snakemake) as job, job.writing(suffix=".parquet") as path:
    superposition_cells.write(superposition_redundancy.sweep(job.spec["superposition"]["redundancy"]), path)
