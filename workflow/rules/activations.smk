"""What a model makes of the texts: its residual stream at the read positions, and its own answers."""


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
        mem_mb=memory("reading"),
        runtime=minutes("reading"),
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
        mem_mb=memory("reading"),
        runtime=minutes("reading"),
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
    resources:
        mem_mb=memory("table"),
        runtime=minutes("table"),
    params:
        spec=spec(),
        code=code("measure_health.py"),
    script:
        "../scripts/measure_health.py"
