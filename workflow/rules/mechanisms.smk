"""Why a feature is there: what its components share with another's, and what dies with them."""


rule measure_interference:
    input:
        checkpoint="<results>/checkpoints/{model}/{revision}/manifest.json",
        design="<results>/designs/{design}.parquet",
        audit="<results>/audits/{design}.parquet",
    output:
        scores="<results>/interference/{model}/{revision}/{weights}/{design}.parquet",
    log:
        "<results>/logs/measure_interference/{model}/{revision}/{weights}/{design}.log",
    benchmark:
        "<results>/benchmarks/measure_interference/{model}/{revision}/{weights}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus(),
        mem_mb=memory("reading"),
        runtime=minutes("reading"),
    params:
        spec=spec(
            "interference.items",
            "interference.permutations",
            "interference.seeds",
            "interference.seed",
            "statistics",
            "activations.primary_position",
            "activations.primary_bos",
            "activations.token_budget",
            "designs.{design}.unreadable",
        ),
        code=code("measure_interference.py"),
    script:
        "../scripts/measure_interference.py"


rule ablate_components:
    input:
        checkpoint="<results>/checkpoints/{model}/{revision}/manifest.json",
        design="<results>/designs/{design}.parquet",
        audit="<results>/audits/{design}.parquet",
    output:
        scores="<results>/ablation/{model}/{revision}/{weights}/{design}.parquet",
    log:
        "<results>/logs/ablate_components/{model}/{revision}/{weights}/{design}.log",
    benchmark:
        "<results>/benchmarks/ablate_components/{model}/{revision}/{weights}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus(),
        mem_mb=memory("reading"),
        runtime=minutes("reading"),
    params:
        spec=spec(
            "ablation",
            "probes.penalties",
            "probes.outer_folds",
            "probes.inner_folds",
            "probes.seed",
            "statistics",
            "activations.primary_position",
            "activations.primary_bos",
            "activations.token_budget",
            "designs.{design}.protocols",
            "designs.{design}.unreadable",
        ),
        code=code("ablate_components.py"),
    script:
        "../scripts/ablate_components.py"


rule gather_interference:
    input:
        interference=parts("interference", plan.interference_units(config)),
    output:
        table="<results>/tables/interference.parquet",
    log:
        "<results>/logs/gather_interference.log",
    benchmark:
        "<results>/benchmarks/gather_interference.tsv"
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


rule gather_ablation:
    input:
        ablation=parts("ablation", plan.ablation_units(config)),
    output:
        table="<results>/tables/ablation.parquet",
    log:
        "<results>/logs/gather_ablation.log",
    benchmark:
        "<results>/benchmarks/gather_ablation.tsv"
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


rule draw_mechanisms:
    input:
        interference="<results>/tables/interference.parquet",
        ablation="<results>/tables/ablation.parquet",
        design="<results>/designs/{design}.parquet",
    output:
        pdf="<results>/figures/{model}/{design}/mechanisms.pdf",
        png=report(
            "<results>/figures/{model}/{design}/mechanisms.png",
            caption="../report/mechanisms.rst",
            category="Mechanisms",
            labels={"model": "{model}", "design": "{design}", "figure": "ablation and interference"},
        ),
        csv="<results>/figures/{model}/{design}/mechanisms.csv",
    log:
        notebook="<results>/logs/draw_mechanisms/{model}/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_mechanisms/{model}/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec(),
        code=code("mechanisms.ipynb", "plots"),
    notebook:
        "../notebooks/mechanisms.ipynb"
