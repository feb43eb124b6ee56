"""Which of many sparse features a dictionary finds, by how often they occur and how much data there is (claim C23).

Features are random unit directions, more of them than dimensions; feature i is on in a share p_i of the rows, independently,
with p log-uniform between two ends, and its size is uniform on [0.5, 1.5]. A feature is found if some decoder direction has
a |cosine| above .9 with it. Cunningham et al. 2023 (arXiv 2309.08600) note that ICA cannot learn an overcomplete basis and
so has no way of learning rare features: it has as many directions as dimensions, and more rows do not change that. An SAE
has room for all, and what it lacks of the rare ones is data: an n-fold sample is an n-fold number of occurrences.

Both see the same rows. The SAE makes the same number of steps whatever their number, so that what differs between two
numbers of rows is what there was to be seen, not how long was looked. A random dictionary of the SAE's size says what is
found by having many directions.

    recall          share of the features of a rarity that some direction is found along
    mmcs            mean over these features of the largest |cosine| with a direction (Sharkey et al. 2022): no threshold in it
    recall_slope    least-squares slope of recall on log10(rows): the change for ten times as many
    recall_gap      recall of one dictionary less that of another, on the same rows

by quarters of the features, the most frequent first, and for the rarer half; a row for every seed, and one with Student's
interval over seeds.

Pitfalls: a feature that is on in fewer rows than there are live latents allowed (k) is still seen as part of an error only.
Recall that is 0 under every seed has an interval without width: there is no spread to see, not no error. ICA of more
features than dimensions need not have a fixed point that it reaches; the note of a row says where it did not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from counterprobe import dictionaries, dictionary_training, progress, statistics, streaming_ica, superposition_cells
from counterprobe.dictionary_training import Recipe, Schedule

COLUMNS = {
    "dictionary": "string",  # or two, first-second, of a difference
    "size": "integer",  # directions of the (first) dictionary
    "rows": "integer",
    "rarity": "string",
    "often": "number",  # the highest and the lowest frequency of its features
    "rarely": "number",
    "seed": "integer",
    "score": "string",
    "estimate": "number",
    "lower": "number",
    "upper": "number",
    "n_features": "integer",
    "n_seeds": "integer",
    "note": "string",
}
DICTIONARIES = ("sae", "ica", "random")
DIFFERENCES = (("sae", "ica"), ("random", "ica"), ("sae", "random"))
# Quarters of the features, 0 the most frequent.
RARITIES = {
    **{f"quarter_{place + 1}": (place,) for place in range(4)},
    "rare_half": (2, 3),
}
# What a row of all seeds together has in place of a seed, and a slope in place of a number of rows.
EVERY_SEED = EVERY_NUMBER = -1
FOUND = 0.9
ROWS_AT_A_TIME = 16384
NAN = float("nan")


@dataclass(frozen=True)
class Setting:
    """features in width dimensions, on in between `often` and `rarely` of the rows; an SAE of `size` latents."""

    features: int = 256
    width: int = 64
    often: float = 0.05
    rarely: float = 0.0005
    size: int = 512
    steps: int = 2000
    batch: int = 512

    @property
    def frequencies(self) -> Float[np.ndarray, " m"]:
        """Descending."""
        return np.geomspace(self.often, self.rarely, self.features)


def planted(setting: Setting, rows: int, *, seed: int) -> tuple[Float[Tensor, "m d"], Float[Tensor, "n d"]]:
    """(directions, rows). More rows with one seed begin with the fewer, in multiples of ROWS_AT_A_TIME."""
    directions = dictionaries.unit_rows(setting.features, setting.width, seed)
    shares = torch.from_numpy(setting.frequencies).float()
    generator = torch.Generator().manual_seed(seed + 1)
    made = []
    for start in range(0, rows, ROWS_AT_A_TIME):
        shape = (ROWS_AT_A_TIME, setting.features)
        sizes = (torch.rand(shape, generator=generator) < shares) * (0.5 + torch.rand(shape, generator=generator))
        made.append((sizes @ directions)[: rows - start])
    return directions, torch.cat(made)


def measure(spec: Mapping[str, Any]) -> pd.DataFrame:
    """The table, one row a number, with the columns of `COLUMNS`.

    spec: `rare_features` (what a `Setting` has, and rows, seeds, seed), `run.rare_features` (the dictionaries) and
    `statistics.confidence`.
    """
    settings = spec["rare_features"]
    names = [name for name in DICTIONARIES if name in spec["run"]["rare_features"]]
    setting = Setting(**{field.name: settings[field.name] for field in fields(Setting)})
    log = progress.logger("rare_features")
    found = []
    for seed in range(settings["seed"], settings["seed"] + settings["seeds"]):
        found.append(recall(setting, settings["rows"], seed=seed, names=names).assign(seed=seed))
        log.info("seed %d: %s", seed, ", ".join(f"{name} {share:.2f}" for name, share in _shares(found[-1])))
    return summary(pd.concat(found, ignore_index=True), spec["statistics"]["confidence"])


def recall(setting: Setting, rows: Sequence[int], *, seed: int, names: Sequence[str] = DICTIONARIES) -> pd.DataFrame:
    """One row for each number of rows, dictionary and feature: its frequency, its largest |cosine|, whether it was found.

    Beside them `size`, directions of the dictionary, and `note`, what its fit has to say.
    """
    k = max(1, round(float(setting.frequencies.sum())))
    parts = []
    for count in rows:
        directions, x = planted(setting, count, seed=seed)
        for name in names:
            note = ""
            if name == "sae":
                schedule = Schedule(setting.steps, setting.batch)
                (sae,) = dictionary_training.train(x, [Recipe(setting.size, k, seed)], schedule, seed=seed).dictionaries
                decoder = sae.decoder
            elif name == "ica":
                ica = streaming_ica.fit(streaming_ica.chunked(x, ROWS_AT_A_TIME), seed=seed)
                decoder, note = ica.mixing.T, ica.note
            else:
                decoder = dictionaries.unit_rows(setting.size, setting.width, seed + 2)
            cosines = dictionary_training.best_match(directions, decoder).numpy()
            about = {"rows": count, "dictionary": name, "size": len(decoder), "frequency": setting.frequencies}
            parts.append(pd.DataFrame({**about, "cosine": cosines, "found": cosines > FOUND, "note": note}))
    return pd.concat(parts, ignore_index=True)


def by_rarity(table: pd.DataFrame, groups: int = 4) -> pd.DataFrame:
    """Share found, by dictionary and rows (index) and rarity (columns; 0 the most frequent, equally many features each)."""
    rarity = _group(table.frequency, groups)
    return table.assign(rarity=rarity).pivot_table("found", ["dictionary", "rows"], "rarity", aggfunc="mean")


def _group(frequency: pd.Series, groups: int) -> pd.Series:
    rank = (-frequency).rank(method="dense").sub(1)
    return (rank * groups // (rank.max() + 1)).astype(int)


def _shares(table: pd.DataFrame) -> Iterator[tuple[str, float]]:
    """Of the rarer half at the most rows, by dictionary."""
    last = table[(table.rows == table.rows.max()) & (_group(table.frequency, 2) == 1)]
    yield from last.groupby("dictionary", sort=False).found.mean().items()


# --- from features to the table ------------------------------------------------------------------------------


def summary(found: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """The table of what `recall` says of several seeds (column `seed`): by rarity, slopes, differences, over seeds."""
    quarter = _group(found.frequency, 4)
    parts = []
    for rarity, places in RARITIES.items():
        of = found[quarter.isin(places)]
        single = _single(of)
        single = pd.concat([single, _slopes(single), *_differences(single)], ignore_index=True)
        whole = pd.concat([single, _over_seeds(single, confidence)], ignore_index=True)
        about = {"rarity": rarity, "often": of.frequency.max(), "rarely": of.frequency.min()}
        parts.append(whole.assign(**about, n_features=of.frequency.nunique()))
    order = ["score", "dictionary", "rarity", "rows", "seed"]
    return superposition_cells.typed(pd.concat(parts).sort_values(order, ignore_index=True), COLUMNS)


def _single(of: pd.DataFrame) -> pd.DataFrame:
    """Recall and mmcs of every dictionary, number of rows and seed."""
    key = ["dictionary", "size", "rows", "seed", "note"]
    means = of.groupby(key, sort=False)[["found", "cosine"]].mean().reset_index()
    parts = [
        means[key].assign(score=score, estimate=means[column].astype(float))
        for score, column in (("recall", "found"), ("mmcs", "cosine"))
    ]
    return pd.concat(parts).assign(lower=NAN, upper=NAN, n_seeds=1)


def _slopes(single: pd.DataFrame) -> pd.DataFrame:
    """Of recall on log10(rows), for every dictionary and seed; without a number where there is one number of rows only."""
    rows = []
    for (name, seed), part in single[single.score == "recall"].groupby(["dictionary", "seed"], sort=False):
        slope, note = NAN, "a slope needs two numbers of rows"
        if part.rows.nunique() > 1:
            slope = float(np.polyfit(np.log10(part.rows.to_numpy(float)), part.estimate.to_numpy(), 1)[0])
            note = _together(part.note)
        row = {"dictionary": name, "size": part["size"].iloc[0], "rows": EVERY_NUMBER, "seed": seed, "note": note}
        rows.append({**row, "score": "recall_slope", "estimate": slope, "lower": NAN, "upper": NAN, "n_seeds": 1})
    return pd.DataFrame(rows)


def _differences(single: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Recall of one dictionary less that of another, paired over rows and seeds."""
    of = single[single.score == "recall"]
    for first, second in DIFFERENCES:
        pairs = of[of.dictionary == first].merge(
            of[of.dictionary == second], on=["rows", "seed"], suffixes=("", "_other"), validate="one_to_one"
        )
        if len(pairs):
            gap = pairs.estimate - pairs.estimate_other
            note = [_together(both) for both in zip(pairs.note, pairs.note_other, strict=True)]
            about = {"dictionary": f"{first}-{second}", "score": "recall_gap"}
            yield pairs[single.columns].assign(**about, estimate=gap, note=note)


def _over_seeds(single: pd.DataFrame, confidence: float) -> pd.DataFrame:
    rows = []
    for _, part in single.groupby(["score", "dictionary", "rows"], sort=False):
        interval = statistics.t_interval(part.estimate.to_numpy(), confidence)
        numbers = {name: float(getattr(interval, name)) for name in ("estimate", "lower", "upper")}
        about = {"seed": EVERY_SEED, "n_seeds": len(part), "note": _together(part.note)}
        rows.append({**part.iloc[0].to_dict(), **numbers, **about})
    return pd.DataFrame(rows)


def _together(notes: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(note for note in notes if note))
