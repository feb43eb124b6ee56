"""What an experiment will take, said before a byte is fetched: `snakemake cost`, or `make cost`.

No benchmark: it would be an output, and with it the second preview had nothing to do.
"""


localrules:
    cost,


rule cost:
    log:
        "<results>/logs/cost.log",
    conda:
        "../../envs/hub.yaml"
    threads: 1
    params:
        spec=spec(*config),
        code=code("cost.py", "hub"),
    script:
        "../scripts/cost.py"
