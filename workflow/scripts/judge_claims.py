"""Hold every claim of the ledger against the tables of this experiment; measure nothing.

Reads workflow/resources/claims.yaml and the tables that the experiment wrote; a table that this configuration does not
make leaves its claims not run, with that reason. Writes one row a claim, and one a leg.
"""

from pathlib import Path

from counterprobe import checksum, claims, designs, ledger, manifest, runtime, superposition_cells

with runtime.job(snakemake) as job:
    every = {Path(path).stem: path for path in job.input.tables}
    subject = claims.subject_of(**job.spec["subject"], design=designs.read(job.input.design))
    judged, legs = claims.judge(
        ledger.load(job.input.ledger),
        {name: checksum.read_parquet(path).to_pandas() for name, path in every.items()},
        subject,
        {name: manifest.sha256_file(path) for name, path in every.items()},
    )
    with job.writing("claims") as path:
        superposition_cells.write(judged, path, claims.COLUMNS)
    with job.writing("legs") as path:
        superposition_cells.write(legs, path, claims.LEG_COLUMNS)
