"""Everything that can happen to a job, all at once: each rule meets one trouble in its first attempt only.

A job writes the number of its attempt and what it was given. The signal that an attempt has begun is a file in begun/.
"""


localrules:
    all,


rule all:
    input:
        expand("done/{case}", case=("cancelled", "over_time", "over_memory", "flaky")),
        expand("done/{case}", case=("card_0", "card_1", "no_card", "chain")),


def attempt_of(wildcards, attempt):
    return attempt


rule cancelled:
    output:
        "done/cancelled",
    resources:
        number=attempt_of,
    shell:
        "mkdir -p begun; touch begun/cancelled.{resources.number}; "
        "[ {resources.number} -gt 1 ] || sleep 600; "
        "echo attempt={resources.number} memory={resources.mem_mb} minutes={resources.runtime} >{output}"


rule over_time:
    output:
        "done/over_time",
    resources:
        number=attempt_of,
        runtime=attempt_of,
    shell:
        "[ {resources.number} -gt 1 ] || sleep 600; "
        "echo attempt={resources.number} memory={resources.mem_mb} minutes={resources.runtime} >{output}"


rule over_memory:
    output:
        "done/over_memory",
    resources:
        number=attempt_of,
        mem_mb=lambda wildcards, attempt: 700 * attempt,
    shell:
        "python -c 'import time; held = bytearray(700 * 2**20); time.sleep(8)'; "
        "echo attempt={resources.number} memory={resources.mem_mb} minutes={resources.runtime} >{output}"


rule flaky:
    output:
        "done/flaky",
    resources:
        number=attempt_of,
    shell:
        "[ {resources.number} -gt 2 ]; "
        "echo attempt={resources.number} memory={resources.mem_mb} minutes={resources.runtime} >{output}"


# Both hold their card until the other has one as well.
rule on_card:
    output:
        "done/card_{card}",
    resources:
        gpu=1,
    shell:
        "mkdir -p begun; touch begun/card_{wildcards.card}; "
        "for second in $(seq 60); do [ $(ls begun | grep -c card_) -ge 2 ] && break; sleep 1; done; "
        "echo cards=$CUDA_VISIBLE_DEVICES partition=$SLURM_JOB_PARTITION >{output}"


rule no_card:
    output:
        "done/no_card",
    resources:
        gpu=0,
    shell:
        "echo cards=${{CUDA_VISIBLE_DEVICES:-}} partition=$SLURM_JOB_PARTITION >{output}"


# The names that the profile puts into one allocation, where each wants a card.
rule extract_activations:
    output:
        "read",
    resources:
        gpu=1,
    shell:
        "echo $SLURM_JOB_ID $CUDA_VISIBLE_DEVICES >{output}"


rule train_probes:
    input:
        "read",
    output:
        "done/chain",
    resources:
        gpu=1,
    shell:
        "read job card <{input}; "
        "echo reading=$job probing=$SLURM_JOB_ID reads_on=$card probes_on=$CUDA_VISIBLE_DEVICES >{output}"
