"""Put the audits of every hub model's revisions together: as a table of results, and as CSV for the report."""

from counterprobe import revision_audit, runtime

with runtime.job(snakemake) as job:
    table = revision_audit.gather(job.input)
    job.write_bytes(revision_audit.to_parquet(table), "table")
    job.write_bytes(table.to_csv(index=False).encode(), "listing")
