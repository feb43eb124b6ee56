"""Say what the current configuration will take: jobs, time, memory and disk of every rule, before anything runs."""

import os

from counterprobe import cost, runtime

with runtime.job(snakemake) as job:
    preview = cost.table(cost.estimate(job.spec), os.cpu_count() or 1)
# After the job, whose output goes to its log.
print(preview, flush=True)
