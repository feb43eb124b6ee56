"""Train toy autoencoders and count antipodal pairs and orthogonal subspaces of learned and of fixed
directions.
"""

from counterprobe import runtime, superposition_cells, superposition_geometry

with runtime.job(snakemake) as job, job.writing(suffix=".parquet") as path:
    superposition_cells.write(superposition_geometry.sweep(job.spec["superposition"]["geometry"]), path)
