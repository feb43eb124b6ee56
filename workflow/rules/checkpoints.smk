"""Checkpoints from three sources (trained here, a directory, the hub), each described by one verified manifest."""

TRAINED_MODELS = plan.models_from(config, "train")
DIRECTORY_MODELS = plan.models_from(config, "directory")
HUB_MODELS = plan.models_from(config, "hub")


localrules:
    register_trained,
    register_directory,
    audit_revisions,
    resolve_revision,
    download_revision,


rule train_model:
    input:
        tables=collect("workflow/resources/{table}.csv", table=("cities", "animals", "names", "suffixes")),
    output:
        training="<results>/training/{model}/manifest.json",
        curve="<results>/training/{model}/loss.csv",
    log:
        "<results>/logs/train_model/{model}.log",
    benchmark:
        "<results>/benchmarks/train_model/{model}.tsv"
    priority: 1
    conda:
        "../../envs/torch.yaml"
    # One thread a model: two threads take twice the processor time at these widths. First, as all else waits for it.
    threads: 1
    resources:
        gpu=gpus(),
        mem_mb=memory("training"),
        runtime=minutes("training"),
    params:
        spec=spec("models.{model}", corpora="models.{model}.corpus"),
        code=code("train_model.py"),
    script:
        "../scripts/train_model.py"


rule register_trained:
    input:
        training="<results>/training/{model}/manifest.json",
    output:
        checkpoint="<results>/checkpoints/{model}/{revision}/manifest.json",
    log:
        "<results>/logs/register_trained/{model}/{revision}.log",
    benchmark:
        "<results>/benchmarks/register_trained/{model}/{revision}.tsv"
    wildcard_constraints:
        model=any_of(TRAINED_MODELS),
    conda:
        "../../envs/hub.yaml"
    threads: 1
    params:
        spec=spec(),
        code=code("register_trained.py", "hub"),
    script:
        "../scripts/register_trained.py"


rule register_directory:
    input:
        files=model_files,
    output:
        checkpoint="<results>/checkpoints/{model}/{revision}/manifest.json",
    log:
        "<results>/logs/register_directory/{model}/{revision}.log",
    benchmark:
        "<results>/benchmarks/register_directory/{model}/{revision}.tsv"
    wildcard_constraints:
        model=any_of(DIRECTORY_MODELS),
    conda:
        "../../envs/hub.yaml"
    threads: 1
    params:
        spec=spec("models.{model}"),
        code=code("register_directory.py", "hub"),
    script:
        "../scripts/register_directory.py"


rule audit_revisions:
    output:
        audit="<results>/revision_audits/{model}.parquet",
    log:
        "<results>/logs/audit_revisions/{model}.log",
    benchmark:
        "<results>/benchmarks/audit_revisions/{model}.tsv"
    wildcard_constraints:
        model=any_of(HUB_MODELS),
    conda:
        "../../envs/torch.yaml"
    threads: 1
    params:
        spec=spec(*(f"models.{{model}}.{key}" for key in ("source", "repo", "revisions", "allow"))),
        code=code("audit_revisions.py"),
    script:
        "../scripts/audit_revisions.py"


rule resolve_revision:
    output:
        resolved="<results>/checkpoints/{model}/{revision}/resolved.json",
    log:
        "<results>/logs/resolve_revision/{model}/{revision}.log",
    benchmark:
        "<results>/benchmarks/resolve_revision/{model}/{revision}.tsv"
    wildcard_constraints:
        model=any_of(HUB_MODELS),
    conda:
        "../../envs/hub.yaml"
    threads: 1
    params:
        spec=spec("models.{model}.repo"),
        code=code("resolve_revision.py", "hub"),
    script:
        "../scripts/resolve_revision.py"


rule download_revision:
    input:
        resolved="<results>/checkpoints/{model}/{revision}/resolved.json",
        # Ancient: one more revision makes a new audit, and what was fetched under the old one stays.
        audit=ancient("<results>/revision_audits/{model}.parquet"),
    output:
        checkpoint="<results>/checkpoints/{model}/{revision}/manifest.json",
    log:
        "<results>/logs/download_revision/{model}/{revision}.log",
    benchmark:
        "<results>/benchmarks/download_revision/{model}/{revision}.tsv"
    wildcard_constraints:
        model=any_of(HUB_MODELS),
    conda:
        "../../envs/hub.yaml"
    threads: 1
    params:
        spec=spec(),
        code=code("download_revision.py", "hub"),
    script:
        "../scripts/download_revision.py"
