"""Toy networks whose answer is known: trained, written down, random; one table of cells, one of verdicts, five figures."""

TOYS = tuple(config["run"]["toys"])
TOY_TABLES = ("superposition", "superposition_verdicts") if TOYS else ()


rule train_toys:
    output:
        networks="<results>/superposition/trained.parquet",
    log:
        "<results>/logs/train_toys.log",
    benchmark:
        "<results>/benchmarks/train_toys.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("toy"),
        runtime=minutes("toy"),
    params:
        spec=spec("superposition.trained"),
        code=code("train_toys.py"),
    script:
        "../scripts/train_toys.py"


rule construct_toys:
    output:
        networks="<results>/superposition/constructed.parquet",
    log:
        "<results>/logs/construct_toys.log",
    benchmark:
        "<results>/benchmarks/construct_toys.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("toy"),
        runtime=minutes("toy"),
    params:
        spec=spec("superposition.constructed"),
        code=code("construct_toys.py"),
    script:
        "../scripts/construct_toys.py"


rule compare_first_layers:
    output:
        networks="<results>/superposition/genericity.parquet",
    log:
        "<results>/logs/compare_first_layers.log",
    benchmark:
        "<results>/benchmarks/compare_first_layers.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("toy"),
        runtime=minutes("toy"),
    params:
        spec=spec("superposition.genericity"),
        code=code("compare_first_layers.py"),
    script:
        "../scripts/compare_first_layers.py"


rule sweep_redundancy:
    output:
        networks="<results>/superposition/redundancy.parquet",
    log:
        "<results>/logs/sweep_redundancy.log",
    benchmark:
        "<results>/benchmarks/sweep_redundancy.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("toy"),
        runtime=minutes("toy"),
    params:
        spec=spec("superposition.redundancy"),
        code=code("sweep_redundancy.py"),
    script:
        "../scripts/sweep_redundancy.py"


rule learn_geometry:
    output:
        networks="<results>/superposition/geometry.parquet",
    log:
        "<results>/logs/learn_geometry.log",
    benchmark:
        "<results>/benchmarks/learn_geometry.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("toy"),
        runtime=minutes("toy"),
    params:
        spec=spec("superposition.geometry"),
        code=code("learn_geometry.py"),
    script:
        "../scripts/learn_geometry.py"


rule gather_superposition:
    input:
        networks=collect("<results>/superposition/{toy}.parquet", toy=TOYS),
    output:
        cells="<results>/tables/superposition.parquet",
        verdicts="<results>/tables/superposition_verdicts.parquet",
    log:
        "<results>/logs/gather_superposition.log",
    benchmark:
        "<results>/benchmarks/gather_superposition.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("table"),
        runtime=minutes("table"),
    params:
        spec=spec(),
        code=code("gather_superposition.py"),
    script:
        "../scripts/gather_superposition.py"


rule draw_superposition:
    input:
        cells="<results>/tables/superposition.parquet",
    output:
        pdf="<results>/figures/superposition/{toy}.pdf",
        png=report(
            "<results>/figures/superposition/{toy}.png",
            caption="../report/superposition.rst",
            category="Superposition",
            labels={"figure": "{toy}"},
        ),
        csv="<results>/figures/superposition/{toy}.csv",
    log:
        notebook="<results>/logs/draw_superposition/{toy}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_superposition/{toy}.tsv"
    wildcard_constraints:
        toy=any_of(TOYS),
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec(),
        code=code("superposition.ipynb", "plots"),
    notebook:
        "../notebooks/superposition.ipynb"
