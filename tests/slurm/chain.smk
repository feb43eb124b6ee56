"""Jobs that wait to be let go, to interrupt a run at a known point: six in a row, beside one of each group's kind."""


localrules:
    all,


rule all:
    input:
        expand("done/{number}", number=range(4)),


rule step:
    output:
        "done/{number}",
    shell:
        "mkdir -p begun; touch begun/{wildcards.number}.$SLURM_JOB_ID; "
        "for second in $(seq 300); do [ -e go ] && break; sleep 1; done; "
        "[ -e go ]; echo $SLURM_JOB_ID >{output}"
