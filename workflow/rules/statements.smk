"""Labelled texts, exactly balanced, and the audit that has to pass before any model reads them."""


localrules:
    audit_design,


rule write_design:
    input:
        tables=texts_of,
    output:
        design="<results>/designs/{design}.parquet",
    log:
        "<results>/logs/write_design/{design}.log",
    benchmark:
        "<results>/benchmarks/write_design/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("table"),
        runtime=minutes("table"),
    params:
        spec=spec("designs.{design}", corpora="designs.{design}.corpus"),
        code=code("write_design.py"),
    script:
        "../scripts/write_design.py"


rule audit_design:
    input:
        design="<results>/designs/{design}.parquet",
    output:
        audit="<results>/audits/{design}.parquet",
    log:
        "<results>/logs/audit_design/{design}.log",
    benchmark:
        "<results>/benchmarks/audit_design/{design}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    params:
        spec=spec("designs.{design}.protocols", "probes.outer_folds", "probes.seed"),
        code=code("audit_design.py"),
    script:
        "../scripts/audit_design.py"
