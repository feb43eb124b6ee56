"""What a person opens: the report in one file, two experiments side by side, the README's table. No part of `all`."""


localrules:
    write_report,
    compare,
    render_readme,


rule write_report:
    input:
        ledger="workflow/resources/claims.yaml",
        template="workflow/report/report.html.j2",
        tables=collect("<results>/tables/{table}.parquet", table=TABLES + TOY_TABLES + CLAIM_TABLES),
        figures=collect("<results>/figures/{figure}.{format}", figure=FIGURES, format=("png", "csv")),
        toys=collect("<results>/figures/superposition/{toy}.{format}", toy=TOYS, format=("png", "csv")),
    output:
        page="<results>/report.html",
    log:
        "<results>/logs/write_report.log",
    benchmark:
        "<results>/benchmarks/write_report.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    params:
        spec=what_is_reported,
        code=code("write_report.py", "plots"),
    script:
        "../scripts/write_report.py"


# No benchmark and no output: asked again, it says it again.
rule compare:
    log:
        "<results>/logs/compare.log",
    conda:
        "../../envs/plots.yaml"
    threads: 1
    params:
        spec=spec("compare"),
        code=code("compare_experiments.py", "plots"),
    script:
        "../scripts/compare_experiments.py"


# No output: README.md is not the workflow's to delete when a job fails.
rule render_readme:
    input:
        claims="<results>/tables/claims.parquet",
    log:
        "<results>/logs/render_readme.log",
    conda:
        "../../envs/plots.yaml"
    threads: 1
    params:
        spec=what_is_reported,
        code=code("render_readme.py", "plots"),
    script:
        "../scripts/render_readme.py"
