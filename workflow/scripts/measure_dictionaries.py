"""Score dictionaries on texts that they have not seen, and move the model by them.

Reconstruction, what the latents are about, sparse probes, the network's answers with reconstructions and controls in place
of activations, and its response to moves along dictionary rows, differences of means and random directions. Every number
stands beside the same number for a random dictionary and for dictionaries of randomised weights. Dictionaries that others
trained (`dictionaries.pretrained`) are scored like those trained here.
"""

from counterprobe import designs, dictionary_scores, dictionary_table, runtime, superposition_cells

with runtime.job(snakemake) as job:
    table = dictionary_scores.measure(
        job.input.checkpoint,
        designs.read(job.input.design),
        job.input.dictionaries,
        job.spec,
        job.wildcards,
        device=job.device,
        pretrained=job.input.pretrained,
    )
    with job.writing("scores") as path:
        superposition_cells.write(table, path, dictionary_table.COLUMNS)
