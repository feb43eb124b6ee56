"""Probes of every target under every protocol, the controls beside them, and a representation planted without XORs."""


rule train_probes:
    input:
        activations="<results>/activations/{model}/{revision}/{weights}/{design}/manifest.json",
        design="<results>/activations/{model}/{revision}/{weights}/{design}/design.parquet",
    output:
        scores="<results>/probes/{model}/{revision}/{weights}/{design}.parquet",
        directions="<results>/probes/{model}/{revision}/{weights}/{design}.safetensors",
    log:
        "<results>/logs/train_probes/{model}/{revision}/{weights}/{design}.log",
    benchmark:
        "<results>/benchmarks/train_probes/{model}/{revision}/{weights}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus(),
        mem_mb=memory("probing"),
        runtime=minutes("probing"),
    params:
        spec=spec("probes", "statistics", "activations.primary_bos", "designs.{design}.protocols"),
        code=code("train_probes.py"),
    script:
        "../scripts/train_probes.py"


rule control_probes:
    input:
        activations="<results>/activations/{model}/{revision}/{weights}/{design}/manifest.json",
        design="<results>/activations/{model}/{revision}/{weights}/{design}/design.parquet",
    output:
        scores="<results>/probe_controls/{model}/{revision}/{weights}/{design}.parquet",
    log:
        "<results>/logs/control_probes/{model}/{revision}/{weights}/{design}.log",
    benchmark:
        "<results>/benchmarks/control_probes/{model}/{revision}/{weights}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus(),
        mem_mb=memory("probing"),
        runtime=minutes("probing"),
    params:
        spec=spec(
            "probes",
            "statistics",
            "activations.positions",
            "activations.primary_bos",
            "designs.{design}.protocols",
        ),
        code=code("control_probes.py"),
    script:
        "../scripts/control_probes.py"


rule probe_planted:
    output:
        scores="<results>/planted/{design}.parquet",
    log:
        "<results>/logs/probe_planted/{design}.log",
    benchmark:
        "<results>/benchmarks/probe_planted/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("toy"),
        runtime=minutes("toy"),
    params:
        spec=spec("planted", "probes", "statistics", "designs.{design}.protocols"),
        code=code("probe_planted.py"),
    script:
        "../scripts/probe_planted.py"
