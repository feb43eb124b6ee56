"""How often the verdicts are wrong and what they find, on planted activations: `snakemake calibration`, no part of `all`."""

CALIBRATIONS = (*config["calibration"]["families"], *(f"power_{curve}" for curve in config["calibration"]["effects"]))


localrules:
    calibration,


rule calibrate:
    output:
        rates="<results>/calibration/{calibration}.parquet",
    log:
        "<results>/logs/calibrate/{calibration}.log",
    benchmark:
        "<results>/benchmarks/calibrate/{calibration}.tsv"
    wildcard_constraints:
        calibration=any_of(CALIBRATIONS),
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=memory("toy"),
        runtime=minutes("toy"),
    params:
        spec=spec("calibration", "probes", "statistics"),
        code=code("calibrate.py"),
    script:
        "../scripts/calibrate.py"


rule gather_calibration:
    input:
        rates=collect("<results>/calibration/{calibration}.parquet", calibration=CALIBRATIONS),
    output:
        table="<results>/tables/calibration.parquet",
    log:
        "<results>/logs/gather_calibration.log",
    benchmark:
        "<results>/benchmarks/gather_calibration.tsv"
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


rule draw_calibration:
    input:
        calibration="<results>/tables/calibration.parquet",
    output:
        pdf="<results>/figures/calibration.pdf",
        png="<results>/figures/calibration.png",
        csv="<results>/figures/calibration.csv",
    log:
        notebook="<results>/logs/draw_calibration.ipynb",
    benchmark:
        "<results>/benchmarks/draw_calibration.tsv"
    conda:
        "../../envs/plots.yaml"
    threads: 1
    resources:
        mem_mb=memory("figure"),
        runtime=minutes("figure"),
    params:
        spec=spec(),
        code=code("calibration.ipynb", "plots"),
    notebook:
        "../notebooks/calibration.ipynb"


rule calibration:
    input:
        rules.draw_calibration.output,
