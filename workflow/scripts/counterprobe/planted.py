"""A representation in which nothing but the tokens is present, in the published layout, under every protocol.

    x = u(item) + u(class named) + u(name) ± u(speaker) ± u(negated) + noise

with u(·) standard Gaussian in R^width and noise of a given share of the items' standard deviation. It is additive: it
holds no XOR and no truth of the statement, so every accuracy of an XOR should be one half, and under a split by rows it
is not. In the published layout (Marks 2024) each item stands in four texts, true and false, plain and negated, and a
row and its negated twin share the speaker. Trained on three texts of an item a probe has to learn them by heart, and the
fourth has the opposite label for truth, for match and, through the twin, for every XOR with negated: accuracies of .2
to .4 are this, and not a property of any model.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from counterprobe import designs, probe_grid, statements, tables
from counterprobe.designs import Design

MODEL = "planted-additive"


def layout(items: int, classes: int, names: int, seed: int) -> tuple[Design, np.ndarray, np.ndarray]:
    """The published layout for `items` made-up items: the design, and the class and the name that each text mentions.

    Wrong classes are drawn at random among the others and half of the rows have the speaker, as published; each item
    has one pair of names, of `names` pairs.
    """
    rng = np.random.default_rng([seed, 0])
    item = np.repeat(np.arange(items), 4)
    match = np.tile([True, True, False, False], items)
    negated = np.tile([False, True], 2 * items)
    row = 2 * item + ~match
    speaker_of_row = rng.permutation(np.arange(2 * items) % 2 == 0)
    speaker = speaker_of_row[row]
    right = rng.integers(classes, size=items)
    wrong = (right + rng.integers(1, classes, size=items)) % classes
    pair = statements.deal_names(speaker_of_row, names, rng)[item]
    n = len(item)
    design = Design(
        name="planted",
        texts=tuple(f"planted {index}" for index in range(n)),
        items=item,
        item_names=tuple(f"item {index}" for index in range(items)),
        couples=item,
        strata=np.zeros(n, dtype=np.int64),
        stratum_names=("all",),
        factors={"speaker": speaker, "negated": negated, "match": match},
        carriers={"speaker": pair},
        carrier_counts={"speaker": names},
        blocks=np.full(n, -1),
        rows=row,
        files=negated.astype(np.int64),
        marks={},
        primary=("speaker", "negated"),
        needed=(),
        aliases={"negated^match": "truth"},
        readouts={},
    )
    return design, np.where(match, right[item], wrong[item]), 2 * pair + speaker


def additive(
    design: Design, mentioned: np.ndarray, named: np.ndarray, *, width: int, noise: float, seed: int
) -> np.ndarray:
    """Activations [n, width], float32: one random vector for each token, added up, and noise."""
    rng = np.random.default_rng([seed, 1])
    items = rng.standard_normal((len(design.item_names), width))
    classes = rng.standard_normal((mentioned.max() + 1, width))
    names = rng.standard_normal((named.max() + 1, width))
    features = rng.standard_normal((2, width))
    signs = np.stack([np.where(design.factors[f], 0.5, -0.5) for f in ("speaker", "negated")], axis=1)
    x = items[design.items] + classes[mentioned] + names[named] + signs @ features
    return (x + noise * rng.standard_normal(x.shape)).astype(np.float32)


def leak(spec: Mapping[str, Any], name: str, *, device: str) -> pd.DataFrame:
    """Accuracy of every target under the three protocols, for several draws of the planted representation.

    spec: `planted`, `probes`, `statistics` and the protocols of the design `name`, beside which the rows stand: they have
    model `planted-additive`, weights `none`, and the draw as their seed.
    """
    planted, settings = spec["planted"], spec["probes"]
    rows: list[dict[str, Any]] = []
    for seed in range(planted["seeds"]):
        design, mentioned, named = layout(planted["items"], planted["classes"], planted["names"], seed)
        x = additive(design, mentioned, named, width=planted["width"], noise=planted["noise"], seed=seed)
        features = torch.from_numpy(x).to(device)
        targets = designs.targets(design)
        labels = np.stack(list(targets.values()), axis=1)
        resampling = probe_grid.resample(design, list(targets), spec["statistics"], settings["seed"])
        for protocol, folds in probe_grid.testable(design, spec["design"]["protocols"], settings):
            site = {
                **tables.NOT_APPLICABLE,
                "model": MODEL,
                "revision": "none",
                "step": -1,
                "weights": "none",
                "design": name,
                "seed": seed,
                "layer": 0,
                "protocol": protocol,
                "probe": probe_grid.REFERENCE,
            }
            held_out = probe_grid.hold_out(features, labels, design, protocol, folds, settings, probe_grid.REFERENCE)
            rows += probe_grid.score_rows(held_out, design, labels, list(targets), resampling, site)
    return tables.frame(rows)
