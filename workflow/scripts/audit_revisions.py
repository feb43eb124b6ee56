"""Are the revisions of a hub model what their names say? Asked of the hub's file listing before anything is fetched.

One row a revision: its commit, the SHA-256 of its weights, and which other revisions, `main` included, list the same.
A revision with another's weights is refused unless `models.NAME.allow` gives the reason why that is right; the last step
of a published run usually is what main holds. The log has the whole table, also of an audit that refuses.
"""

from counterprobe import revision_audit, revisions, runtime
from counterprobe.progress import logger

with runtime.job(snakemake, online=True) as job:
    model = job.spec["model"]
    table = revision_audit.audit(model["repo"], revisions.revisions(model), allow=model["allow"])
    logger("revision_audit").info("%s\n%s", model["repo"], table.to_string(index=False))
    job.write_bytes(revision_audit.to_parquet(table), suffix=".parquet")
    revision_audit.refuse(table)
