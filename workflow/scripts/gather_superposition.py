"""Put the toy experiments together: every cell with its interval over networks, and every claim's verdict."""

from counterprobe import runtime, superposition, superposition_cells

with runtime.job(snakemake) as job:
    cells = superposition.gather(job.input)
    with job.writing("cells") as path:
        superposition_cells.write(cells, path, superposition_cells.CELL_COLUMNS)
    with job.writing("verdicts") as path:
        superposition_cells.write(superposition.verdicts(cells), path, superposition.VERDICT_COLUMNS)
