"""Read the residual stream of one model, revision and weight control on one design.

Randomised weights are recipes: every seed and embedding variant of a rung is applied in memory to the checkpoint that
was verified, and read at the primary position only. Trained weights are read at every configured position.
"""

from pathlib import Path

from counterprobe import designs, extraction, runtime

with runtime.job(snakemake) as job:
    folder = Path(job.output.activations).parent
    content = extraction.run(
        job.input.checkpoint,
        designs.read(job.input.design),
        job.wildcards.weights,
        job.spec,
        folder,
        device=job.device,
    )
    job.manifest(folder, content)
