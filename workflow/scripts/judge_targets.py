"""Give every target at every site its two answers: can it be READ as the model's own, and is it USED.

Reads the tables of probes, health, swaps and audits, and the designs; measures nothing.
"""

from counterprobe import checksum, designs, judgement, runtime, superposition_cells, tables

with runtime.job(snakemake) as job:
    every = {design.name: design for design in map(designs.read, job.input.designs)}
    table = judgement.judge(
        *(tables.read(path) for path in (job.input.probes, job.input.health, job.input.use)),
        checksum.read_parquet(job.input.audit).to_pandas(),
        every,
        {name: job.spec["designs"][name]["protocols"] for name in every},
        job.spec["verdicts"],
        n_folds=job.spec["probes"]["outer_folds"],
        seed=job.spec["probes"]["seed"],
    )
    with job.writing("table") as path:
        superposition_cells.write(table, path, judgement.COLUMNS)
