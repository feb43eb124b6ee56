"""Plant sparse features of known frequencies in rows of few dimensions, and see which of them SAE and ICA find.

Few rows and many, several seeds, all in one job, a random dictionary beside both. The table has recall and mmcs by rarity,
recall's slope over the number of rows, and differences between dictionaries, for every seed and over seeds (claim C23).
"""

from counterprobe import rare_features, runtime, superposition_cells

with runtime.job(snakemake) as job, job.writing(suffix=".parquet") as path:
    superposition_cells.write(rare_features.measure(job.spec), path, rare_features.COLUMNS)
