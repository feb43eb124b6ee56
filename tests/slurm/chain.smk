"""Four jobs that wait to be let go, two of which fill the node: to interrupt a run at a known point."""


localrules:
    all,


rule all:
    input:
        expand("done/{number}", number=range(4)),


rule step:
    output:
        "done/{number}",
    resources:
        mem_mb=50000,
    shell:
        "mkdir -p begun; touch begun/{wildcards.number}.$SLURM_JOB_ID; "
        "for second in $(seq 300); do [ -e go ] && break; sleep 1; done; "
        "[ -e go ]; echo $SLURM_JOB_ID >{output}"
