"""One tidy table per kind of number: the contract between the stages, the figures and whoever reads the results."""

TABLES = (
    *("audit", "behaviour", "capacity", "geometry", "health", "probes", "training", "use", "verdicts"),
    *plan.optional_tables(config),
    *plan.frozen_tables(config),
    *plan.planted_tables(config),
    *(("revisions",) if HUB_MODELS else ()),
)


rule gather_audit:
    input:
        audits=collect("<results>/audits/{design}.parquet", design=sorted(config["run"]["designs"])),
    output:
        table="<results>/tables/audit.parquet",
    log:
        "<results>/logs/gather_audit.log",
    benchmark:
        "<results>/benchmarks/gather_audit.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("table"),
        runtime=minutes("table"),
    params:
        spec=spec(),
        code=code("gather_audits.py"),
    script:
        "../scripts/gather_audits.py"


rule gather_behaviour:
    input:
        behaviour=parts("behaviour", plan.answering_units(config)),
    output:
        table="<results>/tables/behaviour.parquet",
    log:
        "<results>/logs/gather_behaviour.log",
    benchmark:
        "<results>/benchmarks/gather_behaviour.tsv"
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


rule gather_geometry:
    input:
        geometry=parts("geometry", plan.units(config)),
    output:
        table="<results>/tables/geometry.parquet",
    log:
        "<results>/logs/gather_geometry.log",
    benchmark:
        "<results>/benchmarks/gather_geometry.tsv"
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


rule gather_health:
    input:
        health=parts("health", plan.randomised_units(config)),
    output:
        table="<results>/tables/health.parquet",
    log:
        "<results>/logs/gather_health.log",
    benchmark:
        "<results>/benchmarks/gather_health.tsv"
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


rule gather_probes:
    input:
        probes=parts("probes", plan.units(config)),
        controls=parts("probe_controls", plan.controlled_units(config)),
        planted=collect("<results>/planted/{design}.parquet", design=plan.published_designs(config)),
    output:
        table="<results>/tables/probes.parquet",
    log:
        "<results>/logs/gather_probes.log",
    benchmark:
        "<results>/benchmarks/gather_probes.tsv"
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


rule gather_revisions:
    input:
        audits=collect("<results>/revision_audits/{model}.parquet", model=sorted(HUB_MODELS)),
    output:
        table="<results>/tables/revisions.parquet",
        listing=report(
            "<results>/tables/revisions.csv",
            caption="../report/revisions.rst",
            category="Checkpoints",
            labels={"model": "all from the hub", "design": "none", "figure": "audit of revisions"},
        ),
    log:
        "<results>/logs/gather_revisions.log",
    benchmark:
        "<results>/benchmarks/gather_revisions.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("table"),
        runtime=minutes("table"),
    params:
        spec=spec(),
        code=code("gather_revisions.py"),
    script:
        "../scripts/gather_revisions.py"


rule summarise_training:
    input:
        probes="<results>/tables/probes.parquet",
        designs=collect("<results>/designs/{design}.parquet", design=sorted(config["run"]["designs"])),
    output:
        table="<results>/tables/training.parquet",
    log:
        "<results>/logs/summarise_training.log",
    benchmark:
        "<results>/benchmarks/summarise_training.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("table"),
        runtime=minutes("table"),
    params:
        spec=spec(),
        code=code("summarise_training.py"),
    script:
        "../scripts/summarise_training.py"
