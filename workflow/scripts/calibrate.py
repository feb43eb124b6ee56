"""How often the verdicts are given to planted activations: one null family, or one power curve.

In a null family one verdict is wrong, and its rate must stay near 5%. Along a power curve one effect rises from 0. Needs
no model, no data and no network.
"""

from counterprobe import calibration, runtime

with runtime.job(snakemake) as job:
    job.write_table(calibration.calibrate(job.spec, job.wildcards.calibration))
