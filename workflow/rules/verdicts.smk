"""READ and USE: features swapped in the model, and the verdict on every target."""

USED = tuple(plan.used_units(config))
JUDGED = judged_designs()


rule swap_features:
    input:
        checkpoint="<results>/checkpoints/{model}/{revision}/manifest.json",
        activations="<results>/activations/{model}/{revision}/{weights}/{design}/manifest.json",
        design="<results>/activations/{model}/{revision}/{weights}/{design}/design.parquet",
    output:
        scores="<results>/use/{model}/{revision}/{weights}/{design}.parquet",
    log:
        "<results>/logs/swap_features/{model}/{revision}/{weights}/{design}.log",
    benchmark:
        "<results>/benchmarks/swap_features/{model}/{revision}/{weights}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus(),
        mem_mb=memory("reading"),
        runtime=minutes("reading"),
    params:
        spec=spec(
            "use",
            "statistics",
            "activations.positions",
            "activations.primary_bos",
            "probes.outer_folds",
            "probes.seed",
            "designs.{design}.protocols",
        ),
        code=code("swap_features.py"),
    script:
        "../scripts/swap_features.py"


rule gather_use:
    input:
        use=parts("use", USED),
    output:
        table="<results>/tables/use.parquet",
    log:
        "<results>/logs/gather_use.log",
    benchmark:
        "<results>/benchmarks/gather_use.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("table"),
        runtime=minutes("table"),
    params:
        spec=spec(),
        code=code("gather_table.py"),
    script:
        "../scripts/gather_table.py"


rule judge_targets:
    input:
        probes="<results>/tables/probes.parquet",
        health="<results>/tables/health.parquet",
        use="<results>/tables/use.parquet",
        audit="<results>/tables/audit.parquet",
        designs=collect("<results>/designs/{design}.parquet", design=JUDGED),
    output:
        table="<results>/tables/verdicts.parquet",
    log:
        "<results>/logs/judge_targets.log",
    benchmark:
        "<results>/benchmarks/judge_targets.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("table"),
        runtime=minutes("table"),
    params:
        spec=what_is_judged,
        code=code("judge_targets.py"),
    script:
        "../scripts/judge_targets.py"


rule draw_verdicts:
    input:
        verdicts="<results>/tables/verdicts.parquet",
        designs=collect("<results>/designs/{design}.parquet", design=JUDGED),
    output:
        pdf="<results>/figures/verdicts.pdf",
        png=report(
            "<results>/figures/verdicts.png",
            caption="../report/verdicts.rst",
            category="Verdicts",
            labels={"model": "all", "design": "all", "figure": "READ and USE"},
        ),
        csv="<results>/figures/verdicts.csv",
    log:
        notebook="<results>/logs/draw_verdicts.ipynb",
    benchmark:
        "<results>/benchmarks/draw_verdicts.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec(),
        code=code("verdicts.ipynb", "plots"),
    notebook:
        "../notebooks/verdicts.ipynb"
