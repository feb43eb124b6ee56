"""Train small networks on a task that needs no XOR, and read XORs from them and from their initialisation.

All networks of one depth (every size, sparsity and seed) train as one batched computation. Writes one row per
network and score; a run that diverged has rows like any other, with the reason in place of a number.
"""

from counterprobe import runtime, superposition_cells, superposition_trained

with runtime.job(snakemake) as job, job.writing(suffix=".parquet") as path:
    superposition_cells.write(superposition_trained.sweep(job.spec["superposition"]["trained"]), path)
