"""What rules share: the slice of the configuration each depends on, the digest of its code, and its resources."""

SCRIPTS = os.path.join(workflow.basedir, "workflow", "scripts")
NOTEBOOKS = os.path.join(workflow.basedir, "workflow", "notebooks")
ENVIRONMENTS = os.path.join(workflow.basedir, "envs")


wildcard_constraints:
    model=r"[^/]+",
    revision=r"[^/]+",
    weights=r"[^/]+",
    design=r"[^/]+",
    dictionary=r"[^/]+",
    seed=r"\d+",


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


def memory(work):
    """MB to ask a cluster for, by the kind of work (see the module `footprint`), the model's size and the attempt."""

    def mem_mb(wildcards, attempt):
        return footprint.memory(work, parameters(wildcards), attempt)

    return mem_mb


def minutes(work):
    """Minutes to ask a cluster for, by the same three."""

    def runtime(wildcards, attempt):
        return footprint.minutes(work, parameters(wildcards), attempt, device=config["device"])

    return runtime


def parameters(wildcards):
    """Size of the model that a job is about; 0 for a job that is about none."""
    name = dict(wildcards.items()).get("model")
    return footprint.parameters(config["models"][name]) if name else 0


def any_of(names):
    """A wildcard pattern that matches these names and no other: an empty alternation would match everything."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def parts(stage, units):
    """The parts that the jobs of a stage wrote for the cells of the current configuration, in sorted order."""
    return sorted(
        f"<results>/{stage}/{unit.model}/{unit.revision}/{unit.weights}/{unit.design}.parquet" for unit in units
    )


def checkpoints_of(wildcards):
    """The manifests of every revision of a model, from early to late."""
    return [
        f"<results>/checkpoints/{wildcards.model}/{revision}/manifest.json"
        for revision in plan.revisions(config["models"][wildcards.model])
    ]


def dictionaries_beside_each_other(wildcards):
    """The dictionaries of one model at one revision: of trained weights, then of every rung they are held against."""
    return collect(
        "<results>/dictionaries/{model}/{revision}/{weights}/{design}/manifest.json",
        weights=[plan.TRAINED, *config["dictionaries"]["rungs"]],
        allow_missing=True,
    )


def dictionaries_to_steer(wildcards):
    """The dictionaries of the cell that is steered, where it has any: their rows are directions too."""
    if plan.Unit(**dict(wildcards.items())) in plan.dictionary_units(config):
        return "<results>/dictionaries/{model}/{revision}/{weights}/{design}/manifest.json"
    return []


def dictionaries_of_others(wildcards):
    """Those that others trained for a model."""
    return collect(
        "<results>/pretrained/{dictionary}/manifest.json", dictionary=plan.pretrained(config, wildcards.model)
    )


def dictionary_files(wildcards):
    """What the folder of such a dictionary holds, so that a changed one is read again; nothing of one on the hub."""
    entry = config["dictionaries"]["pretrained"][wildcards.dictionary]
    names = ("cfg.json", "sae_weights.safetensors") if entry["source"] == "directory" else ()
    return [f"{entry['path']}/{name}" for name in names if os.path.isfile(f"{entry['path']}/{name}")]


def texts_of(wildcards):
    """The tracked tables a generated design draws from, or the user's own files."""
    design = config["designs"][wildcards.design]
    if design["source"] == "csv":
        return [entry["path"] for entry in design["files"]]
    return collect("workflow/resources/{table}.csv", table=("cities", "animals", "names", "suffixes"))


def model_files(wildcards):
    """What a model folder holds, so that a changed model is read again."""
    folder = config["models"][wildcards.model]["path"]
    kept = ("config.json", "tokenizer", "vocab", "merges", "special_tokens", "added_tokens")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [f"{folder}/{name}" for name in names if name.startswith(kept) or name.endswith(".safetensors")]


def what_is_read(wildcards):
    """Trained weights do not depend on the ladder, nor a rung on the choice of BOS that only trained weights get."""
    shared = [
        f"activations.{key}"
        for key in ("positions", "backend", "dtype", "token_budget", "threads", "layers")
        if key in config["activations"]
    ]
    if wildcards.weights == plan.TRAINED:
        own = ["activations.bos"]
    else:
        own = ["activations.primary_bos", "controls.seeds", "controls.embeddings"]
    return spec(*shared, *own, "designs.{design}.unreadable")(wildcards)


def judged_designs():
    """Designs with a swap, so with a verdict."""
    return sorted({unit.design for unit in plan.used_units(config)})


def what_is_judged(wildcards):
    """The protocols of the designs that are judged, the folds of those that make their own, and the margins."""
    protocols = [f"designs.{name}.protocols" for name in judged_designs()]
    return spec("verdicts", "probes.outer_folds", "probes.seed", *protocols)(wildcards)


def what_is_steered(wildcards):
    """Doses, nulls and texts at the revisions of the ladder; at the others what detection needs, and nothing else."""
    keys = ["directions", "layers", "report_items", "penalty", "gradient_texts", "seed"]
    if wildcards.revision in plan.control_revisions(config, wildcards.model):
        keys += ["coefficients", "positions", "choose_items", "nulls", "jacobian", "gallery", "generated"]
    keys += [
        f"{key}.{wildcards.design}"
        for key in ("continuations", "neutral")
        if wildcards.design in config["steering"][key]
    ]
    return spec(
        *(f"steering.{key}" for key in keys),
        "statistics.resamples",
        "statistics.confidence",
        "activations.primary_bos",
        "probes.outer_folds",
        "probes.seed",
        "designs.{design}.protocols",
        "designs.{design}.unreadable",
    )(wildcards)


def subject():
    """What the ledger of claims is about: the first model of the run at its last controlled revision, on its first design."""
    model = config["run"]["models"][0]
    read = plan.designs_of(config, model)
    whole = [name for name in read if name not in config["run"]["last_only"]] or read
    return {
        "model": model,
        "revision": plan.control_revisions(config, model)[-1],
        "design": whole[0],
        "published": next((name for name in read if name in plan.published_designs(config)), ""),
    }


def what_is_claimed(wildcards):
    """The subject, and what its targets and its protocol are known from."""
    found = subject()
    about = {key: value for key, value in found.items() if key != "design"}
    return specs.canonical(
        {
            "subject": {
                **about,
                "protocols": config["designs"][found["design"]]["protocols"],
                "position": config["activations"]["primary_position"],
                "bos": config["activations"]["primary_bos"],
                "n_folds": config["probes"]["outer_folds"],
                "seed": config["probes"]["seed"],
            }
        }
    )


def what_is_reported(wildcards):
    """The whole configuration, and the overlays that a command has to name to make it again."""
    overlays = [os.path.relpath(path) for path in workflow.configfiles]
    return specs.canonical({"config": config, "overlays": [path for path in overlays if path != "config.yaml"]})
