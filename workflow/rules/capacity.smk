"""Probes of growing capacity at one layer, of trained and of randomised weights."""


rule probe_capacity:
    input:
        activations="<results>/activations/{model}/{revision}/{weights}/{design}/manifest.json",
        design="<results>/activations/{model}/{revision}/{weights}/{design}/design.parquet",
    output:
        scores="<results>/capacity/{model}/{revision}/{weights}/{design}.parquet",
    log:
        "<results>/logs/probe_capacity/{model}/{revision}/{weights}/{design}.log",
    benchmark:
        "<results>/benchmarks/probe_capacity/{model}/{revision}/{weights}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus(),
        mem_mb=memory("probing"),
        runtime=minutes("probing"),
    params:
        spec=spec(
            "capacity",
            "probes",
            "statistics",
            "activations.primary_position",
            "activations.primary_bos",
            "designs.{design}.protocols",
        ),
        code=code("probe_capacity.py"),
    script:
        "../scripts/probe_capacity.py"


rule gather_capacity:
    input:
        capacity=parts("capacity", plan.capacity_units(config)),
    output:
        table="<results>/tables/capacity.parquet",
    log:
        "<results>/logs/gather_capacity.log",
    benchmark:
        "<results>/benchmarks/gather_capacity.tsv"
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


rule draw_capacity:
    input:
        capacity="<results>/tables/capacity.parquet",
        design="<results>/designs/{design}.parquet",
    output:
        pdf="<results>/figures/{model}/{design}/capacity.pdf",
        png=report(
            "<results>/figures/{model}/{design}/capacity.png",
            caption="../report/capacity.rst",
            category="Probes",
            labels={"model": "{model}", "design": "{design}", "figure": "accuracy and selectivity by capacity"},
        ),
        csv="<results>/figures/{model}/{design}/capacity.csv",
    log:
        notebook="<results>/logs/draw_capacity/{model}/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_capacity/{model}/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec(),
        code=code("capacity.ipynb", "plots"),
    notebook:
        "../notebooks/capacity.ipynb"
