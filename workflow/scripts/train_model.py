"""Train the embedded language model: one job, all of its revisions.

A GPT-NeoX with a word-level tokenizer learns lines of a corpus in which every feature is drawn independently of every
other. Revisions are saved in the layout of the hub, as the checkpoints of a published model would be; the loss of every
step goes to a table beside them.
"""

from pathlib import Path

from counterprobe import embedded_model, runtime

with runtime.job(snakemake) as job:
    folder = Path(job.output.training).parent
    losses = embedded_model.train(job.spec["model"], job.spec["corpus"], job.input.tables, folder, device=job.device)
    job.write_bytes(losses.to_csv(index=False, float_format="%.5f").encode(), "curve")
    job.manifest(folder)
