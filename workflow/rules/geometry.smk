"""How features lie in activation space: exact inference and generalisation, for every cell of the experiment."""


rule measure_geometry:
    input:
        activations="<results>/activations/{model}/{revision}/{weights}/{design}/manifest.json",
        design="<results>/activations/{model}/{revision}/{weights}/{design}/design.parquet",
    output:
        scores="<results>/geometry/{model}/{revision}/{weights}/{design}.parquet",
    log:
        "<results>/logs/measure_geometry/{model}/{revision}/{weights}/{design}.log",
    benchmark:
        "<results>/benchmarks/measure_geometry/{model}/{revision}/{weights}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus(),
        mem_mb=memory("probing"),
        runtime=minutes("probing"),
    params:
        spec=spec(
            "probes.penalties",
            "probes.dichotomies",
            "probes.outer_folds",
            "probes.seed",
            "statistics.resamples",
            "statistics.confidence",
            "designs.{design}.protocols",
        ),
        code=code("measure_geometry.py"),
    script:
        "../scripts/measure_geometry.py"
