"""The embedded model: a language model small enough to be trained on the spot, on texts whose features are known.

It has to continue "So that is" with true or false, which is match ⊕ negated, so that XOR is needed; no continuation
depends on any other XOR, so those are needless. Lines are drawn anew at every step, with a wrong class drawn anew for
every line: what the model learns is which item belongs to which class, not which sentences it has seen.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from counterprobe import language_model, statements, tokenization
from counterprobe.revisions import revisions, step_of


def train(
    model: Mapping[str, Any],
    corpus: Mapping[str, Any],
    tables: Sequence[str | Path],
    folder: Path,
    *,
    device: str,
    embedding: language_model.Embedding = language_model.PYTHIAS,
) -> pd.DataFrame:
    """Train the model of one entry of `models:`, write `folder`/step{N}/, return columns step and loss (nats a token).

    Raises UserError as `statements.world` and `language_model.train` do.
    """
    world = statements.world(corpus, Path(tables[0]).parent)
    tokenizer = tokenization.word_level_tokenizer(statements.vocabulary(world))
    architecture = language_model.Architecture(**model["architecture"])
    training = language_model.Training(**model["training"])
    # Its own stream: drawing lines must not depend on how many numbers the initialisation takes.
    rng = np.random.default_rng([training.seed, 1])
    lines = language_model.batches(
        lambda n: statements.corpus_texts(world, corpus, n, rng),
        tokenizer,
        batch=training.batch,
        context=architecture.context,
        seed=training.seed,
    )
    steps = [step_of(revision) for revision in revisions(model)]
    losses = language_model.train(
        lines, tokenizer, architecture, training, steps, folder, device=device, embedding=embedding
    )
    return pd.DataFrame({"step": np.arange(1, len(losses) + 1), "loss": losses})
