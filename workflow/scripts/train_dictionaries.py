"""Learn dictionaries of one model's activations: SAEs of every size, sparsity and seed, and what they are held against.

The residual stream of all tokens of the texts of a design, or of random tokens in their place, at the configured layers;
under trained weights or one rung of the ladder. Beside trained SAEs: SAEs with a frozen random decoder, random rows,
principal components, independent components, neurons. Files are in SAELens's layout.
"""

from pathlib import Path

from counterprobe import designs, dictionary_fitting, runtime

with runtime.job(snakemake) as job:
    folder = Path(job.output.dictionaries).parent
    content = dictionary_fitting.fit(
        job.input.checkpoint,
        designs.read(job.input.design),
        job.wildcards.weights,
        job.spec,
        folder,
        model=job.wildcards.model,
        device=job.device,
    )
    job.manifest(folder, content)
