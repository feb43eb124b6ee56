"""Put the claims of two experiments side by side: what moved, by how much, and whether that is within noise.

`snakemake compare` with the configuration key `compare: [default, other]`; both must have run. Prints what changed, and
writes every row to results/FIRST/compare_SECOND.csv.
"""

from counterprobe import claims_compared, runtime

with runtime.job(snakemake) as job:
    first, second = job.spec["compare"]
    table = claims_compared.compare(*(claims_compared.read(name) for name in (first, second)))
    claims_compared.write(table, first, second)
    said = claims_compared.text(table, first, second)
# After the job, whose output goes to its log.
print(said, flush=True)
