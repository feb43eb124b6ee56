"""Dictionaries of activations, what they are worth beside random ones, and how the network answers to their directions."""


localrules:
    register_dictionary,


rule register_dictionary:
    input:
        files=dictionary_files,
    output:
        pretrained="<results>/pretrained/{dictionary}/manifest.json",
    log:
        "<results>/logs/register_dictionary/{dictionary}.log",
    benchmark:
        "<results>/benchmarks/register_dictionary/{dictionary}.tsv"
    conda:
        "../../envs/hub.yaml"
    threads: 1
    params:
        spec=spec("dictionaries.pretrained.{dictionary}"),
        code=code("register_dictionary.py", "hub"),
    script:
        "../scripts/register_dictionary.py"


rule train_dictionaries:
    input:
        checkpoint="<results>/checkpoints/{model}/{revision}/manifest.json",
        design="<results>/designs/{design}.parquet",
        audit="<results>/audits/{design}.parquet",
    output:
        dictionaries="<results>/dictionaries/{model}/{revision}/{weights}/{design}/manifest.json",
    log:
        "<results>/logs/train_dictionaries/{model}/{revision}/{weights}/{design}.log",
    benchmark:
        "<results>/benchmarks/train_dictionaries/{model}/{revision}/{weights}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus(),
        mem_mb=memory("reading"),
        runtime=minutes("reading"),
    params:
        spec=spec(
            "dictionaries.layers",
            "dictionaries.inputs",
            "dictionaries.sizes",
            "dictionaries.k",
            "dictionaries.seeds",
            "dictionaries.steps",
            "dictionaries.batch",
            "dictionaries.learning_rate",
            "dictionaries.ica_iterations",
            "dictionaries.held_out",
            "dictionaries.first_token",
            "dictionaries.seed",
            "activations.primary_bos",
            "activations.token_budget",
            "designs.{design}.unreadable",
        ),
        code=code("train_dictionaries.py"),
    script:
        "../scripts/train_dictionaries.py"


rule measure_dictionaries:
    input:
        checkpoint="<results>/checkpoints/{model}/{revision}/manifest.json",
        design="<results>/designs/{design}.parquet",
        dictionaries=dictionaries_beside_each_other,
        pretrained=dictionaries_of_others,
    output:
        scores="<results>/dictionary_scores/{model}/{revision}/{design}.parquet",
    log:
        "<results>/logs/measure_dictionaries/{model}/{revision}/{design}.log",
    benchmark:
        "<results>/benchmarks/measure_dictionaries/{model}/{revision}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus(),
        mem_mb=memory("reading"),
        runtime=minutes("reading"),
    params:
        spec=spec(
            "dictionaries.held_out",
            "dictionaries.first_token",
            "dictionaries.seed",
            "dictionaries.items",
            "dictionaries.sparse_probes",
            "dictionaries.sites",
            "dictionaries.directions",
            "dictionaries.distances",
            "dictionaries.draws",
            "dictionaries.jitter",
            "probes.outer_folds",
            "probes.seed",
            "statistics",
            "activations.primary_position",
            "activations.primary_bos",
            "activations.token_budget",
            "designs.{design}.protocols",
            "designs.{design}.unreadable",
        ),
        code=code("measure_dictionaries.py"),
    script:
        "../scripts/measure_dictionaries.py"


rule gather_dictionaries:
    input:
        dictionaries=collect(
            "<results>/dictionary_scores/{cell}.parquet",
            cell=sorted({f"{one.model}/{one.revision}/{one.design}" for one in plan.dictionary_units(config)}),
        ),
    output:
        table="<results>/tables/dictionaries.parquet",
    log:
        "<results>/logs/gather_dictionaries.log",
    benchmark:
        "<results>/benchmarks/gather_dictionaries.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("table"),
        runtime=minutes("table"),
    params:
        spec=spec(),
        code=code("gather_dictionaries.py"),
    script:
        "../scripts/gather_dictionaries.py"


rule plant_rare_features:
    output:
        table="<results>/tables/rare_features.parquet",
    log:
        "<results>/logs/plant_rare_features.log",
    benchmark:
        "<results>/benchmarks/plant_rare_features.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("toy"),
        runtime=minutes("toy"),
    params:
        spec=spec("rare_features", "run.rare_features", "statistics.confidence"),
        code=code("plant_rare_features.py"),
    script:
        "../scripts/plant_rare_features.py"


rule draw_rare_features:
    input:
        table="<results>/tables/rare_features.parquet",
    output:
        pdf="<results>/figures/rare_features.pdf",
        png=report(
            "<results>/figures/rare_features.png",
            caption="../report/rare_features.rst",
            category="Dictionaries",
            labels={"model": "none", "design": "none", "figure": "rare features against the number of rows"},
        ),
        csv="<results>/figures/rare_features.csv",
    log:
        notebook="<results>/logs/draw_rare_features.ipynb",
    benchmark:
        "<results>/benchmarks/draw_rare_features.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec(),
        code=code("rare_features.ipynb", "plots"),
    notebook:
        "../notebooks/rare_features.ipynb"


rule draw_dictionaries:
    input:
        dictionaries="<results>/tables/dictionaries.parquet",
        design="<results>/designs/{design}.parquet",
    output:
        pdf="<results>/figures/{model}/{design}/dictionaries.pdf",
        png=report(
            "<results>/figures/{model}/{design}/dictionaries.png",
            caption="../report/dictionaries.rst",
            category="Dictionaries",
            labels={"model": "{model}", "design": "{design}", "figure": "dictionaries beside random ones"},
        ),
        csv="<results>/figures/{model}/{design}/dictionaries.csv",
    log:
        notebook="<results>/logs/draw_dictionaries/{model}/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_dictionaries/{model}/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec(),
        code=code("dictionaries.ipynb", "plots"),
    notebook:
        "../notebooks/dictionaries.ipynb"


rule draw_perturbations:
    input:
        dictionaries="<results>/tables/dictionaries.parquet",
        design="<results>/designs/{design}.parquet",
    output:
        pdf="<results>/figures/{model}/{design}/perturbations.pdf",
        png=report(
            "<results>/figures/{model}/{design}/perturbations.png",
            caption="../report/perturbations.rst",
            category="Dictionaries",
            labels={"model": "{model}", "design": "{design}", "figure": "errors and sensitive directions"},
        ),
        csv="<results>/figures/{model}/{design}/perturbations.csv",
    log:
        notebook="<results>/logs/draw_perturbations/{model}/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_perturbations/{model}/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec(),
        code=code("perturbations.ipynb", "plots"),
    notebook:
        "../notebooks/perturbations.ipynb"
