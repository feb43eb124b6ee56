"""What moves the model, and what else it moves: features steered along many directions, and read by what is said."""


rule steer_features:
    input:
        checkpoint="<results>/checkpoints/{model}/{revision}/manifest.json",
        design="<results>/designs/{design}.parquet",
        audit="<results>/audits/{design}.parquet",
        dictionaries=dictionaries_to_steer,
    output:
        scores="<results>/steering/{model}/{revision}/{weights}/{design}.parquet",
    log:
        "<results>/logs/steer_features/{model}/{revision}/{weights}/{design}.log",
    benchmark:
        "<results>/benchmarks/steer_features/{model}/{revision}/{weights}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus(),
        mem_mb=memory("reading"),
        runtime=minutes("reading"),
    params:
        spec=what_is_steered,
        code=code("steer_features.py"),
    script:
        "../scripts/steer_features.py"


rule gather_steering:
    input:
        steering=parts("steering", plan.steered_units(config)),
    output:
        table="<results>/tables/steering.parquet",
    log:
        "<results>/logs/gather_steering.log",
    benchmark:
        "<results>/benchmarks/gather_steering.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("table"),
        runtime=minutes("table"),
    params:
        spec=spec(),
        code=code("gather_steering.py"),
    script:
        "../scripts/gather_steering.py"


rule draw_steering:
    input:
        steering="<results>/tables/steering.parquet",
        design="<results>/designs/{design}.parquet",
    output:
        pdf="<results>/figures/{model}/{design}/steering.pdf",
        png=report(
            "<results>/figures/{model}/{design}/steering.png",
            caption="../report/steering.rst",
            category="Steering",
            labels={"model": "{model}", "design": "{design}", "figure": "what moves, and what else"},
        ),
        csv="<results>/figures/{model}/{design}/steering.csv",
    log:
        notebook="<results>/logs/draw_steering/{model}/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_steering/{model}/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec(),
        code=code("steering.ipynb", "plots"),
    notebook:
        "../notebooks/steering.ipynb"
