"""Write one design: labelled texts, their factors, carriers and folds.

A `statements` design is generated from the tracked tables; a `csv` design is read from the user's own files.
One row a text; everything else a reader needs (names, aliases, read-outs) is in the file's metadata.
"""

from counterprobe import designs, runtime, statements

with runtime.job(snakemake) as job:
    designs.write(
        statements.build(job.wildcards.design, job.spec["design"], job.spec.get("corpus"), job.input.tables),
        job.output.design,
    )
