"""The embedding matrix and single neurons: what they are for, what feeds them, how few of them tell a feature."""


rule measure_embedding:
    input:
        checkpoints=checkpoints_of,
        words=collect("workflow/resources/{table}.csv", table=("cities", "animals", "names", "suffixes")),
    output:
        scores="<results>/embedding/{model}.parquet",
    log:
        "<results>/logs/measure_embedding/{model}.log",
    benchmark:
        "<results>/benchmarks/measure_embedding/{model}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("reading"),
        runtime=minutes("reading"),
    params:
        spec=spec("embedding", "statistics.confidence", corpora="models.{model}.corpus"),
        code=code("measure_embedding.py"),
    script:
        "../scripts/measure_embedding.py"


rule attribute_neurons:
    input:
        checkpoint="<results>/checkpoints/{model}/{revision}/manifest.json",
        design="<results>/designs/{design}.parquet",
        audit="<results>/audits/{design}.parquet",
    output:
        scores="<results>/neuron_sources/{model}/{revision}/{weights}/{design}.parquet",
    log:
        "<results>/logs/attribute_neurons/{model}/{revision}/{weights}/{design}.log",
    benchmark:
        "<results>/benchmarks/attribute_neurons/{model}/{revision}/{weights}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus(),
        mem_mb=memory("reading"),
        runtime=minutes("reading"),
    params:
        spec=spec(
            "neurons.items",
            "neurons.chosen",
            "neurons.count",
            "neurons.top",
            "neurons.seed",
            "activations.positions",
            "activations.primary_bos",
            "activations.token_budget",
            "statistics",
            "designs.{design}.unreadable",
        ),
        code=code("attribute_neurons.py"),
    script:
        "../scripts/attribute_neurons.py"


rule probe_neurons:
    input:
        checkpoint="<results>/checkpoints/{model}/{revision}/manifest.json",
        design="<results>/designs/{design}.parquet",
        audit="<results>/audits/{design}.parquet",
    output:
        scores="<results>/sparse_probes/{model}/{revision}/{weights}/{design}.parquet",
    log:
        "<results>/logs/probe_neurons/{model}/{revision}/{weights}/{design}.log",
    benchmark:
        "<results>/benchmarks/probe_neurons/{model}/{revision}/{weights}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus(),
        mem_mb=memory("reading"),
        runtime=minutes("reading"),
    params:
        spec=spec(
            "neurons.k",
            "neurons.rankings",
            "neurons.candidates",
            "neurons.dichotomies",
            "neurons.seeds",
            "neurons.seed",
            "probes",
            "activations.primary_position",
            "activations.primary_bos",
            "activations.token_budget",
            "statistics",
            "designs.{design}.unreadable",
            "designs.{design}.protocols",
        ),
        code=code("probe_neurons.py"),
    script:
        "../scripts/probe_neurons.py"


rule read_layers:
    input:
        checkpoint="<results>/checkpoints/{model}/{revision}/manifest.json",
        design="<results>/designs/{design}.parquet",
        audit="<results>/audits/{design}.parquet",
    output:
        scores="<results>/layers/{model}/{revision}/{weights}/{design}.parquet",
    log:
        "<results>/logs/read_layers/{model}/{revision}/{weights}/{design}.log",
    benchmark:
        "<results>/benchmarks/read_layers/{model}/{revision}/{weights}/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus(),
        mem_mb=memory("reading"),
        runtime=minutes("reading"),
    params:
        spec=spec(
            "neurons.items",
            "neurons.lens",
            "neurons.seed",
            "probes",
            "activations.positions",
            "activations.primary_bos",
            "activations.token_budget",
            "statistics",
            "designs.{design}.unreadable",
            "designs.{design}.protocols",
        ),
        code=code("read_layers.py"),
    script:
        "../scripts/read_layers.py"


rule gather_embedding:
    input:
        embedding=collect("<results>/embedding/{model}.parquet", model=sorted(plan.opened_models(config))),
    output:
        table="<results>/tables/embedding.parquet",
    log:
        "<results>/logs/gather_embedding.log",
    benchmark:
        "<results>/benchmarks/gather_embedding.tsv"
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


rule gather_neurons:
    input:
        sources=parts("neuron_sources", plan.neuron_units(config)),
        sparse=parts("sparse_probes", plan.sparse_units(config)),
        layers=parts("layers", plan.neuron_units(config)),
    output:
        table="<results>/tables/neurons.parquet",
    log:
        "<results>/logs/gather_neurons.log",
    benchmark:
        "<results>/benchmarks/gather_neurons.tsv"
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


rule train_frozen_embeddings:
    input:
        words=collect("workflow/resources/{table}.csv", table=("cities", "animals", "names", "suffixes")),
    output:
        table="<results>/frozen_embeddings/{seed}.parquet",
    log:
        "<results>/logs/train_frozen_embeddings/{seed}.log",
    benchmark:
        "<results>/benchmarks/train_frozen_embeddings/{seed}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        gpu=gpus(),
        mem_mb=memory("toy"),
        runtime=minutes("toy"),
    params:
        spec=spec(
            *collect(
                "frozen_embeddings.{key}",
                key=("architecture", "training", "similar", "rows", "finetune", "seed"),
            ),
            "run.frozen_embeddings",
            "probes.penalties",
            "probes.inner_folds",
            "probes.outer_folds",
            "probes.seed",
            corpora="frozen_embeddings.corpus",
        ),
        code=code("train_frozen_embeddings.py"),
    script:
        "../scripts/train_frozen_embeddings.py"


rule gather_frozen_embeddings:
    input:
        collect("<results>/frozen_embeddings/{seed}.parquet", seed=plan.frozen_seeds(config)),
    output:
        table="<results>/tables/frozen_embeddings.parquet",
    log:
        "<results>/logs/gather_frozen_embeddings.log",
    benchmark:
        "<results>/benchmarks/gather_frozen_embeddings.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("table"),
        runtime=minutes("table"),
    params:
        spec=spec("statistics.confidence"),
        code=code("gather_frozen_embeddings.py"),
    script:
        "../scripts/gather_frozen_embeddings.py"


rule draw_frozen_embeddings:
    input:
        table="<results>/tables/frozen_embeddings.parquet",
    output:
        pdf="<results>/figures/frozen_embeddings.pdf",
        png=report(
            "<results>/figures/frozen_embeddings.png",
            caption="../report/frozen_embeddings.rst",
            category="Embedding and neurons",
            labels={"model": "all", "design": "none", "figure": "embeddings that never move"},
        ),
        csv="<results>/figures/frozen_embeddings.csv",
    log:
        notebook="<results>/logs/draw_frozen_embeddings.ipynb",
    benchmark:
        "<results>/benchmarks/draw_frozen_embeddings.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec(),
        code=code("frozen_embeddings.ipynb", "plots"),
    notebook:
        "../notebooks/frozen_embeddings.ipynb"


rule draw_embedding:
    input:
        embedding="<results>/tables/embedding.parquet",
    output:
        pdf="<results>/figures/{model}/embedding.pdf",
        png=report(
            "<results>/figures/{model}/embedding.png",
            caption="../report/embedding.rst",
            category="Embedding and neurons",
            labels={"model": "{model}", "design": "none", "figure": "directions in the embedding matrix"},
        ),
        csv="<results>/figures/{model}/embedding.csv",
    log:
        notebook="<results>/logs/draw_embedding/{model}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_embedding/{model}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec(),
        code=code("embedding.ipynb", "plots"),
    notebook:
        "../notebooks/embedding.ipynb"


rule draw_neurons:
    input:
        neurons="<results>/tables/neurons.parquet",
        design="<results>/designs/{design}.parquet",
    output:
        pdf="<results>/figures/{model}/{design}/neurons.pdf",
        png=report(
            "<results>/figures/{model}/{design}/neurons.png",
            caption="../report/neurons.rst",
            category="Embedding and neurons",
            labels={"model": "{model}", "design": "{design}", "figure": "single neurons"},
        ),
        csv="<results>/figures/{model}/{design}/neurons.csv",
    log:
        notebook="<results>/logs/draw_neurons/{model}/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_neurons/{model}/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec(),
        code=code("neurons.ipynb", "plots"),
    notebook:
        "../notebooks/neurons.ipynb"


rule draw_layers:
    input:
        neurons="<results>/tables/neurons.parquet",
        design="<results>/designs/{design}.parquet",
    output:
        pdf="<results>/figures/{model}/{design}/layers.pdf",
        png=report(
            "<results>/figures/{model}/{design}/layers.png",
            caption="../report/layers.rst",
            category="Embedding and neurons",
            labels={"model": "{model}", "design": "{design}", "figure": "layer by layer"},
        ),
        csv="<results>/figures/{model}/{design}/layers.csv",
    log:
        notebook="<results>/logs/draw_layers/{model}/{design}.ipynb",
    benchmark:
        "<results>/benchmarks/draw_layers/{model}/{design}.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec(),
        code=code("layers.ipynb", "plots"),
    notebook:
        "../notebooks/layers.ipynb"
