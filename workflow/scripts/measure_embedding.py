"""Find directions of token properties in the embedding matrix, and whether training made them.

For every revision of a model: capital letters, leading spaces, digits, plurals and the corpus' own classes of words, by the
difference of class means, held out over the vocabulary, beside random labels and matrices that nobody trained.
"""

from counterprobe import embedding, runtime

with runtime.job(snakemake) as job:
    job.write_table(
        embedding.measure(job.input.checkpoints, job.spec.get("corpus"), job.input.words, job.spec, job.wildcards.model)
    )
