"""Put the tables of dictionaries of all models and designs together, in sorted order."""

from counterprobe import dictionary_table, runtime, superposition_cells

with runtime.job(snakemake) as job:
    table = dictionary_table.gather(job.input.dictionaries)
    with job.writing("table") as path:
        superposition_cells.write(table, path, dictionary_table.COLUMNS)
