"""Audit a design before any model reads it: leaks of the split, imbalances, factors with too few carriers.

One-hot tokens are an additive representation of the texts; whatever a probe finds of an XOR in them under the
configured split is a leak of that split. What the design promised and does not keep stops the workflow here.
"""

from counterprobe import design_audit, designs, runtime

with runtime.job(snakemake) as job:
    report = design_audit.audit(
        designs.read(job.input.design),
        job.spec["design"]["protocols"],
        n_folds=job.spec["probes"]["outer_folds"],
        seed=job.spec["probes"]["seed"],
    )
    job.write_bytes(report.to_parquet(), "audit")
    report.refuse()
