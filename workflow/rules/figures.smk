"""Figures, drawn by notebooks from tables and from nothing else: PDF, PNG and the rows behind each as CSV."""

FIGURES = plan.figures(config)
FORMATS = ("pdf", "png", "csv")


rule draw_layers_by_step:
    input:
        probes="<results>/tables/probes.parquet",
        design="<results>/designs/{design}.parquet",
    output:
        pdf="<results>/figures/{model}/{design}/layers_by_step.pdf",
        png=report(
            "<results>/figures/{model}/{design}/layers_by_step.png",
            caption="../report/layers_by_step.rst",
            category="Probes",
            labels={"model": "{model}", "design": "{design}", "figure": "accuracy by layer and step"},
        ),
        csv="<results>/figures/{model}/{design}/layers_by_step.csv",
    log:
        notebook="<results>/logs/draw_layers_by_step/{model}/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_layers_by_step/{model}/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec("activations.primary_position", "activations.primary_bos", "designs.{design}.protocols"),
        code=code("layers_by_step.ipynb", "plots"),
    notebook:
        "../notebooks/layers_by_step.ipynb"


rule draw_ladder:
    input:
        probes="<results>/tables/probes.parquet",
        health="<results>/tables/health.parquet",
        design="<results>/designs/{design}.parquet",
    output:
        pdf="<results>/figures/{model}/{design}/ladder.pdf",
        png=report(
            "<results>/figures/{model}/{design}/ladder.png",
            caption="../report/ladder.rst",
            category="Probes",
            labels={"model": "{model}", "design": "{design}", "figure": "trained against randomised weights"},
        ),
        csv="<results>/figures/{model}/{design}/ladder.csv",
    log:
        notebook="<results>/logs/draw_ladder/{model}/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_ladder/{model}/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
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
        pdf="<results>/figures/{model}/{design}/leak.pdf",
        png=report(
            "<results>/figures/{model}/{design}/leak.png",
            caption="../report/leak.rst",
            category="Probes",
            labels={"model": "{model}", "design": "{design}", "figure": "the leak of a split by rows"},
        ),
        csv="<results>/figures/{model}/{design}/leak.csv",
    log:
        notebook="<results>/logs/draw_leak/{model}/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_leak/{model}/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
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
        pdf="<results>/figures/{model}/{design}/needed.pdf",
        png=report(
            "<results>/figures/{model}/{design}/needed.png",
            caption="../report/needed.rst",
            category="Probes",
            labels={"model": "{model}", "design": "{design}", "figure": "needed and needless XORs"},
        ),
        csv="<results>/figures/{model}/{design}/needed.csv",
    log:
        notebook="<results>/logs/draw_needed/{model}/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_needed/{model}/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec("activations.primary_bos", "designs.{design}.protocols"),
        code=code("needed.ipynb", "plots"),
    notebook:
        "../notebooks/needed.ipynb"


rule draw_geometry:
    input:
        geometry="<results>/tables/geometry.parquet",
        design="<results>/designs/{design}.parquet",
    output:
        pdf="<results>/figures/{model}/{design}/geometry.pdf",
        png=report(
            "<results>/figures/{model}/{design}/geometry.png",
            caption="../report/geometry.rst",
            category="Geometry",
            labels={"model": "{model}", "design": "{design}", "figure": "how the features lie"},
        ),
        csv="<results>/figures/{model}/{design}/geometry.csv",
    log:
        notebook="<results>/logs/draw_geometry/{model}/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_geometry/{model}/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec("activations.primary_position", "activations.primary_bos"),
        code=code("geometry.ipynb", "plots"),
    notebook:
        "../notebooks/geometry.ipynb"
