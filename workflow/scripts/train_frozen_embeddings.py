"""Train the embedded model around embeddings that never move, beside trainable twins: what is lost, and what is read.

Gaussian, orthogonal and permuted rows, tied to the unembedding and untied, under one seed. The models are thrown away; the
table holds their loss, their answers, and what probes read of needed and needless XORs.
"""

from counterprobe import frozen_embedding_table, frozen_embeddings, runtime, superposition_cells

with runtime.job(snakemake) as job, job.writing(suffix=".parquet") as path:
    table = frozen_embeddings.measure(job.spec, job.input.words, int(job.wildcards.seed), device=job.device)
    superposition_cells.write(table, path, frozen_embedding_table.COLUMNS)
