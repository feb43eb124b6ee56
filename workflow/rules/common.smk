"""What every rule needs: the slice of the configuration it depends on, the digest of its code, and its resources."""

SCRIPTS = os.path.join(workflow.basedir, "workflow", "scripts")
NOTEBOOKS = os.path.join(workflow.basedir, "workflow", "notebooks")
ENVIRONMENTS = os.path.join(workflow.basedir, "envs")


wildcard_constraints:
    model=r"[^/]+",
    revision=r"[^/]+",
    weights=r"[^/]+",
    design=r"[^/]+",


def spec(*paths, **references):
    """A params function: the canonical JSON of the named slices of the configuration, and of nothing else."""

    def slices(wildcards):
        return specs.slice_(config, paths, dict(wildcards.items()), references)

    return slices


def code(script, environment="torch"):
    """The digest of a rule's script or notebook, of every library module it reaches, and of its environment."""
    folder = NOTEBOOKS if script.endswith(".ipynb") else SCRIPTS
    return specs.code_digest(
        os.path.join(folder, script),
        os.path.join(SCRIPTS, "counterprobe"),
        os.path.join(ENVIRONMENTS, f"{environment}.yaml"),
    )


def gpus():
    """Cards that a rule asks for."""
    return 1 if config["device"] == "cuda" else 0


def any_of(names):
    """A wildcard pattern that matches these names and no other: an empty alternation would match everything."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def parts(stage, units):
    """The parts that the jobs of a stage wrote for the cells of the current configuration, in sorted order."""
    return sorted(
        f"<results>/{stage}/{unit.model}/{unit.revision}/{unit.weights}/{unit.design}.parquet" for unit in units
    )
