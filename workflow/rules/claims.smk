"""What the tables say of the claims that the workflow starts from: `claims` and the legs that each rests on."""

CLAIM_TABLES = ("claims", "claim_legs")


rule judge_claims:
    input:
        ledger="workflow/resources/claims.yaml",
        schema="workflow/schemas/claims.schema.yaml",
        design=f"<results>/designs/{subject()['design']}.parquet",
        tables=collect("<results>/tables/{table}.parquet", table=TABLES + TOY_TABLES),
    output:
        claims="<results>/tables/claims.parquet",
        legs="<results>/tables/claim_legs.parquet",
    log:
        "<results>/logs/judge_claims.log",
    benchmark:
        "<results>/benchmarks/judge_claims.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("table"),
        runtime=minutes("table"),
    params:
        spec=what_is_claimed,
        code=code("judge_claims.py", "plots"),
    script:
        "../scripts/judge_claims.py"
