"""The table of models trained around embeddings that never move: its columns, and what each kind loses over all seeds.

    loss_gap         L_frozen − L_trainable, nats a token on held-out lines, paired over seeds
    loss_gap_share   (L_frozen − L_trainable) / (H − L_trainable), H the entropy of the tokens' frequencies: of what training
                     gains over knowing only how often each token occurs, the share that the frozen embedding costs

A kind's own numbers are rows of one seed; differences are rows of `EVERY_SEED`. Intervals are Student's, over seeds.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from counterprobe import statistics, superposition_cells

COLUMNS = {
    "embedding": "string",
    "tied": "boolean",
    "seed": "integer",
    "target": "string",
    "probe": "string",
    "score": "string",
    "layer": "integer",
    "level": "number",
    "estimate": "number",
    "lower": "number",
    "upper": "number",
    "n_texts": "integer",
    "n_seeds": "integer",
    "note": "string",
}
TRAINABLE = "trainable"
TUNED, ONE_ROW, ONE_ROW_TUNED = "trainable_tuned", "one_row", "one_row_tuned"
# What each is held against where it is not the trainable twin.
TWINS = {ONE_ROW_TUNED: TUNED}
# What a row of all seeds together has in place of a seed.
EVERY_SEED = -1
NAN = float("nan")
BLANK = {
    "target": "none",
    "probe": "none",
    "layer": -1,
    "level": NAN,
    "lower": NAN,
    "upper": NAN,
    "n_texts": 0,
    "note": "",
}


def gather(paths: Sequence[str | Path], confidence: float) -> pd.DataFrame:
    """The tables of all seeds, and what the kinds lose, with intervals over seeds. UserError names a damaged table."""
    table = pd.concat([superposition_cells.read(path, COLUMNS) for path in paths])
    table = pd.concat([table, pd.DataFrame(list(gaps(table, confidence)))])
    order = ["embedding", "tied", "score", "target", "probe", "seed"]
    return superposition_cells.typed(table.sort_values(order, ignore_index=True), COLUMNS)


def gaps(table: pd.DataFrame, confidence: float) -> Iterator[dict[str, Any]]:
    """Differences from the trainable twin, paired over seeds, of every other kind, tied and untied."""
    columns = ["target", "probe", "score"]
    scored = table[table.score.isin(["loss", "accuracy"])]
    compared = scored[~scored.embedding.isin([TRAINABLE, TUNED])]
    for (kind, tied, *about), own in compared.groupby(["embedding", "tied", *columns]):
        twins = scored[(scored.embedding == TWINS.get(str(kind), TRAINABLE)) & (scored.tied == tied)]
        twins = twins[(twins[columns] == about).all(axis=1)].set_index("seed")
        own = own.set_index("seed").sort_index()
        twins = twins.loc[own.index]
        lost = (own.estimate - twins.estimate).to_numpy()
        row = {
            **BLANK,
            **dict(zip(columns, about, strict=True)),
            "embedding": kind,
            "tied": tied,
            "seed": EVERY_SEED,
            "level": 0.0,
            "n_texts": int(own.n_texts.iloc[0]),
            "n_seeds": len(own),
        }
        yield {**row, "score": f"{about[2]}_gap", **_over_seeds(lost, confidence)}
        if about[2] == "loss":
            gained = (twins.level - twins.estimate).to_numpy()
            if (gained <= 0).any():
                note = "the trainable model has learned no more than how often tokens occur"
                yield {**row, "score": "loss_gap_share", "estimate": NAN, "note": note}
            else:
                yield {**row, "score": "loss_gap_share", **_over_seeds(lost / gained, confidence)}


def _over_seeds(values: Float[np.ndarray, " seeds"], confidence: float) -> dict[str, float]:
    interval = statistics.t_interval(values, confidence)
    return {name: float(getattr(interval, name)) for name in ("estimate", "lower", "upper")}
