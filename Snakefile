"""counterprobe: is what a linear probe finds a feature of the model, of the data, or of any network at all?

The stages, one file each, in the order in which data flows through them. `snakemake` makes the tables and the
figures of the experiment that config.yaml describes; `snakemake --configfile config/smoke.yaml` those of another.
"""

import os
import sys

from snakemake.utils import min_version

min_version("9.27")

sys.path.insert(0, os.path.join(workflow.basedir, "workflow", "scripts"))

from counterprobe import configuration, footprint, plan, progress, spec as specs


configfile: "config.yaml"


# Snakemake lists this file last, and what the command line names, which wins, before it.
*overlays, base = workflow.configfiles

try:
    config = configuration.validate(config, [base, *overlays])
except progress.UserError as error:
    raise WorkflowError(str(error)) from None

failures = progress.terse(logger)

# Idle OpenMP threads that spin make two jobs on two cores many times slower than one after the other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Papermill draws a bar for the five cells of a figure; its lines would be most of what a run prints.
os.environ.setdefault("TQDM_DISABLE", "1")
# A kernel that keeps to itself what is neither an error nor about the figure.
os.environ.update(JUPYTER_PATH=os.path.join(workflow.basedir, "workflow", "notebooks", "jupyter"))


report: "workflow/report/workflow.rst"


pathvars:
    results=f"results/{config['experiment']}",


include: "workflow/rules/common.smk"
include: "workflow/rules/statements.smk"
include: "workflow/rules/checkpoints.smk"
include: "workflow/rules/activations.smk"
include: "workflow/rules/probes.smk"
include: "workflow/rules/geometry.smk"
include: "workflow/rules/capacity.smk"
include: "workflow/rules/calibration.smk"
include: "workflow/rules/mechanisms.smk"
include: "workflow/rules/steering.smk"
include: "workflow/rules/neurons.smk"
include: "workflow/rules/verdicts.smk"
include: "workflow/rules/superposition.smk"
include: "workflow/rules/dictionaries.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/claims.smk"
include: "workflow/rules/cost.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        collect("<results>/tables/{table}.parquet", table=TABLES + TOY_TABLES + CLAIM_TABLES),
        collect("<results>/figures/{figure}.{format}", figure=FIGURES, format=FORMATS),
        collect("<results>/figures/superposition/{toy}.{format}", toy=TOYS, format=FORMATS),


onerror:
    logger.error(failures.report())
