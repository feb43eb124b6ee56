"""Put the seeds of the frozen embeddings together, and say what each kind loses against its trainable twins."""

from counterprobe import frozen_embedding_table, runtime, superposition_cells

with runtime.job(snakemake) as job, job.writing(suffix=".parquet") as path:
    table = frozen_embedding_table.gather(job.input, job.spec["statistics"]["confidence"])
    superposition_cells.write(table, path, frozen_embedding_table.COLUMNS)
