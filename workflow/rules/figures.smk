"""Figures, drawn by notebooks from tables and from nothing else: PDF, PNG and the rows behind each as CSV."""

FIGURES = tuple(plan.figures(config))
FORMATS = ("pdf", "png", "csv")


rule draw_layers_by_step:
    input:
        probes="<results>/tables/probes.parquet",
        design="<results>/designs/{design}.parquet",
    output:
        pdf="<results>/figures/{design}/layers_by_step.pdf",
        png=report(
            "<results>/figures/{design}/layers_by_step.png",
            caption="../report/layers_by_step.rst",
            category="Probes",
            labels={"design": "{design}", "figure": "accuracy by layer and step"},
        ),
        csv="<results>/figures/{design}/layers_by_step.csv",
    log:
        notebook="<results>/logs/draw_layers_by_step/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_layers_by_step/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    params:
        spec=spec("activations.primary_position", "activations.primary_bos", "designs.{design}.protocols"),
        code=code("layers_by_step.ipynb", "plots"),
    notebook:
        "../notebooks/layers_by_step.ipynb"


rule draw_ladder:
    input:
        probes="<results>/tables/probes.parquet",
        design="<results>/designs/{design}.parquet",
    output:
        pdf="<results>/figures/{design}/ladder.pdf",
        png=report(
            "<results>/figures/{design}/ladder.png",
            caption="../report/ladder.rst",
            category="Probes",
            labels={"design": "{design}", "figure": "trained against randomised weights"},
        ),
        csv="<results>/figures/{design}/ladder.csv",
    log:
        notebook="<results>/logs/draw_ladder/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_ladder/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    params:
        spec=spec("activations.primary_position", "activations.primary_bos", "designs.{design}.protocols"),
        code=code("ladder.ipynb", "plots"),
    notebook:
        "../notebooks/ladder.ipynb"


rule draw_leak:
    input:
        probes="<results>/tables/probes.parquet",
        design="<results>/designs/{design}.parquet",
    output:
        pdf="<results>/figures/{design}/leak.pdf",
        png=report(
            "<results>/figures/{design}/leak.png",
            caption="../report/leak.rst",
            category="Probes",
            labels={"design": "{design}", "figure": "the leak of a split by rows"},
        ),
        csv="<results>/figures/{design}/leak.csv",
    log:
        notebook="<results>/logs/draw_leak/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_leak/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    params:
        spec=spec("activations.primary_position", "activations.primary_bos"),
        code=code("leak.ipynb", "plots"),
    notebook:
        "../notebooks/leak.ipynb"


rule draw_needed:
    input:
        probes="<results>/tables/probes.parquet",
        behaviour="<results>/tables/behaviour.parquet",
        design="<results>/designs/{design}.parquet",
    output:
        pdf="<results>/figures/{design}/needed.pdf",
        png=report(
            "<results>/figures/{design}/needed.png",
            caption="../report/needed.rst",
            category="Probes",
            labels={"design": "{design}", "figure": "needed and needless XORs"},
        ),
        csv="<results>/figures/{design}/needed.csv",
    log:
        notebook="<results>/logs/draw_needed/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_needed/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    params:
        spec=spec("designs.{design}.protocols"),
        code=code("needed.ipynb", "plots"),
    notebook:
        "../notebooks/needed.ipynb"
