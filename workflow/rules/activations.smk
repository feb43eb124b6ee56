"""What a model makes of the texts: its residual stream at the read positions, and its own answers."""


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


rule extract_activations:
    input:
        checkpoint="<results>/checkpoints/{model}/{revision}/manifest.json",
        design="<results>/designs/{design}.parquet",
        audit="<results>/audits/{design}.parquet",
    output:
        activations="<results>/activations/{model}/{revision}/{weights}/{design}/manifest.json",
        design="<results>/activations/{model}/{revision}/{weights}/{design}/design.parquet",
    log:
        "<results>/logs/extract_activations/{model}/{revision}/{weights}/{design}.log",
    benchmark:
        "<results>/benchmarks/extract_activations/{model}/{revision}/{weights}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: config["activations"]["threads"]
    resources:
        gpu=gpus(),
        declared_threads=config["activations"]["threads"],
    params:
        spec=what_is_read,
        code=code("extract_activations.py"),
    script:
        "../scripts/extract_activations.py"


rule measure_behaviour:
    input:
        checkpoint="<results>/checkpoints/{model}/{revision}/manifest.json",
        design="<results>/designs/{design}.parquet",
        audit="<results>/audits/{design}.parquet",
    output:
        scores="<results>/behaviour/{model}/{revision}/{weights}/{design}.parquet",
    log:
        "<results>/logs/measure_behaviour/{model}/{revision}/{weights}/{design}.log",
    benchmark:
        "<results>/benchmarks/measure_behaviour/{model}/{revision}/{weights}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus(),
    params:
        spec=spec("statistics", "activations.bos", "designs.{design}.unreadable"),
        code=code("measure_behaviour.py"),
    script:
        "../scripts/measure_behaviour.py"


rule measure_health:
    input:
        trained="<results>/activations/{model}/{revision}/trained/{design}/manifest.json",
        control="<results>/activations/{model}/{revision}/{weights}/{design}/manifest.json",
    output:
        scores="<results>/health/{model}/{revision}/{weights}/{design}.parquet",
    log:
        "<results>/logs/measure_health/{model}/{revision}/{weights}/{design}.log",
    benchmark:
        "<results>/benchmarks/measure_health/{model}/{revision}/{weights}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    params:
        spec=spec(),
        code=code("measure_health.py"),
    script:
        "../scripts/measure_health.py"
