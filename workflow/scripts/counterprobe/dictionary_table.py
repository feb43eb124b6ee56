"""The table of dictionaries: its columns, its two baselines, its intervals.

One row a number. What was measured is said by `dictionary` (its kind), `size`, `k`, `seed`, by `kind` (of replacement or of
direction; none), `target`, `at` (a distance, a number of latents), `score` (module `dictionary_scores`). The two baselines
of every row are `random_dictionary`, the same number for random rows of the same k under the same weights, and
`random_model`, the same number for the same kind of dictionary fitted to randomised weights, mean over the rungs. Rows of
randomised weights are in the table, too, and their `random_model` is that mean.

What no dictionary has a part in (a move along a difference of means) is held against decoder rows of the random one.
A number without both baselines is left out, and the log says so: nobody can read it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from counterprobe import checksum, progress
from counterprobe.progress import UserError
from counterprobe.superposition_cells import typed

COLUMNS = {
    "model": "string",
    "revision": "string",
    "step": "integer",
    "weights": "string",
    "design": "string",
    "bos": "boolean",
    "layer": "integer",
    "inputs": "string",
    "dictionary": "string",
    "size": "integer",
    "k": "integer",
    "seed": "integer",
    "kind": "string",
    "target": "string",
    "at": "number",
    "score": "string",
    "level": "number",
    "estimate": "number",
    "lower": "number",
    "upper": "number",
    "random_dictionary": "number",
    "random_model": "number",
    "n_tokens": "integer",
    "n_groups": "integer",
    "note": "string",
}
KEY = tuple(COLUMNS)[: list(COLUMNS).index("score") + 1]
RANDOM, FROZEN, SAE = "random", "frozen_decoder", "sae"
# Latents of bases with a sign come in pairs, and a second size means nothing for them.
BASES = ("pca", "ica", "neurons")
# Before the name of a dictionary that others trained.
PRETRAINED = "pretrained:"
# Kinds that random rows are asked for in place of one that no dictionary has a part in.
STANDS_IN = "decoder"
TRAINED = "trained"
UNKNOWN = float("nan")


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Both baselines beside every number; numbers without both, or that are none, are left out, and the log says so."""
    site = ["model", "revision", "design", "bos", "layer", "inputs"]
    about = ["kind", "target", "at", "score"]
    rows = rows.assign(_size=np.where(rows.dictionary.isin(BASES), 0, rows["size"]))
    finite = rows[np.isfinite(rows.estimate)]
    mine = [*site, "dictionary", "_size", "k", "seed", *about]
    rungs = finite[finite.weights != TRAINED].groupby(mine).estimate.mean().to_dict()
    random = finite[finite.dictionary == RANDOM]
    exact = random.groupby([*site, "weights", "_size", "k", "seed", *about]).estimate.mean().to_dict()
    # Bases have no size, and stand beside the smallest random dictionary.
    smallest = random[random.seed == 0].sort_values("_size")
    first = smallest.groupby([*site, "weights", "k", *about]).estimate.first().to_dict()
    found: list[tuple[float, float]] = []
    for row in rows.itertuples(index=False):
        values = dict(zip(rows.columns, row, strict=True))
        place = [values[name] for name in site]
        said = [values[name] for name in about]
        stand_in = [STANDS_IN, *said[1:]]
        beside = UNKNOWN
        for table, key in (
            (exact, (*place, values["weights"], values["_size"], values["k"], values["seed"], *said)),
            (exact, (*place, values["weights"], values["_size"], values["k"], 0, *said)),
            (first, (*place, values["weights"], values["k"], *said)),
            (exact, (*place, values["weights"], values["_size"], values["k"], 0, *stand_in)),
        ):
            if key in table:
                beside = float(table[key])
                break
        key = tuple(values[name] for name in mine)
        found.append((beside, float(rungs[key]) if key in rungs else UNKNOWN))
    table = rows.assign(random_dictionary=[a for a, _ in found], random_model=[b for _, b in found])
    complete = np.isfinite(table[["estimate", "random_dictionary", "random_model"]]).all(axis=1)
    for values in (
        table[~complete][["weights", "layer", "dictionary", "kind", "score"]].drop_duplicates().itertuples(index=False)
    ):
        progress.logger("dictionaries").warning("left out, for it or a baseline of it is no number: %s", tuple(values))
    return typed(table[complete].sort_values(list(KEY), ignore_index=True), COLUMNS)


def ratio(
    over: Float[np.ndarray, " u"], under: Float[np.ndarray, " u"], weights: Float[np.ndarray, "R u"], confidence: float
) -> dict[str, float]:
    """Σ over / Σ under with the percentile interval over resampled units; NaN where nothing is below the line.

    Fewer than two draws (one unit cannot be resampled) give no interval.
    """
    below = weights @ under
    draws = (weights @ over)[below > 0] / below[below > 0]
    if not under.sum() > 0:
        return {"estimate": UNKNOWN, "lower": UNKNOWN, "upper": UNKNOWN}
    estimate = over.sum() / under.sum()
    if len(draws) < 2:
        return {"estimate": float(estimate), "lower": UNKNOWN, "upper": UNKNOWN}
    lower, upper = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"estimate": float(estimate), "lower": float(min(lower, estimate)), "upper": float(max(upper, estimate))}


def gather(paths: Sequence[str | Path]) -> pd.DataFrame:
    """One table from many parts, in an order that depends on the rows alone."""
    parts = [read(path) for path in paths]
    if not parts:
        return typed(pd.DataFrame(columns=list(COLUMNS)), COLUMNS)
    return typed(pd.concat(parts).sort_values(list(KEY), ignore_index=True), COLUMNS)


def read(path: str | Path) -> pd.DataFrame:
    """A table of dictionaries. UserError for a file that is missing, damaged or of another version."""
    table = checksum.read_parquet(path).to_pandas()
    if list(table) != list(COLUMNS):
        raise UserError(f"{path}: not a table of dictionaries of this version; delete it and run again")
    return typed(table, COLUMNS)
