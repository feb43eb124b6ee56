"""When in training a feature can be read, and in how many cells of the layer × step grid (claims C11 and C12).

An additive representation of two features, read by anything that is affine in them, reaches accuracy .75 on their XOR
and not more (the OR, or any other three of the four cells: a threshold cuts a parallelogram, and XOR needs opposite
corners on one side). So a count of cells above .75 is a count of cells that no OR explains, and "only at the last layer
and step 16,000" (C12) is such a count. It depends on the protocol: each has rows of its own.

From the table of probes alone, trained weights and the reference probe. A cell is (layer, step), layers ≥ 0; per model,
design, position, BOS, protocol and target:

    cells_above_or          cells whose accuracy interval lies above .75
    cells_beyond_or         cells in which each of the four cells of a pair is read above one half (worst_cell, lower end);
                            pairs only, and not under the published protocol, which has accuracies only

and from the rows in which each fold chose its own layer (layer −1), over two or more revisions of known step:

    first_step_decodable    first step at which the accuracy interval lies above its level (one half where classes are
                            balanced)
    first_step_above_or     the same above .75
    first_step_beyond_or    the same for worst_cell above one half; pairs only
    order_decodable, order_above_or     rank of that step (1: first; equal steps share the lower rank) among the factors
                            of the pre-registered pair, the XORs that the model needs and the pairs that nothing needs;
                            the note says which of these the target is

NaN: never, or not published. The number of cells that were looked at, and which ones count where they are few, stand in
the note; so does a step after which the feature was lost again.

Pitfall: nothing here corrects for the number of cells. With intervals of 95%, one cell in forty lies above its level for
nothing; a feature that comes and goes in training is that, or something that the model gave up, and one training run
does not tell which.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from counterprobe import designs, tables
from counterprobe.designs import Design

OR_CAP = 0.75
CHANCE = 0.5
REFERENCE = "logistic"
GRID = ["model", "design", "position", "bos", "protocol"]
# Cells that a note spells out.
MOST_NAMED = 6


def summarise(probes: pd.DataFrame, of_design: Mapping[str, Design]) -> pd.DataFrame:
    """Counts, first steps and their order, for every grid that the table of probes holds; see the module."""
    read = probes[
        (probes.weights == "trained")
        & (probes.probe == REFERENCE)
        & (probes.control == "none")
        & (probes.representation == "activations")
        & probes.score.isin(["accuracy", "worst_cell"])
        & probes.design.isin(of_design)
    ]
    rows: list[dict[str, Any]] = []
    for key, grid in read.groupby(GRID):
        site = {
            **tables.NOT_APPLICABLE,
            **dict(zip(GRID, key, strict=True)),
            "bos": bool(key[GRID.index("bos")]),
            "revision": "all",
            "step": -1,
            "weights": "trained",
            "probe": REFERENCE,
        }
        rows += _of_grid(grid, of_design[site["design"]], site)
    return tables.frame(rows)


def role(design: Design, target: str) -> str:
    """What a target is in the comparison of order; empty for what has no part in it."""
    if target in design.primary:
        return f"feature {'AB'[design.primary.index(target)]} of the pre-registered pair"
    if target in design.needed:
        return "needed XOR"
    if target.count("^") != 1:
        return ""
    if set(target.split("^")) == set(design.primary):
        return "needless XOR, pre-registered" if design.needed else "XOR, pre-registered"
    return "needless XOR" if design.needed else "XOR"


def _of_grid(grid: pd.DataFrame, design: Design, site: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    accuracy, worst = (grid[grid.score == score] for score in ("accuracy", "worst_cell"))
    first: dict[str, dict[str, float]] = {"decodable": {}, "above_or": {}}
    for target, of_target in accuracy.groupby("target"):
        here = {
            **site,
            "target": target,
            "n_texts": int(of_target.n_texts.min()),
            "n_groups": int(of_target.n_groups.min()),
        }
        flag = designs.closed_under_xor(design, target)
        cells = worst[worst.target == target]
        yield _count(of_target, OR_CAP, {**here, "score": "cells_above_or"}, flag)
        if len(cells):
            yield _count(cells, CHANCE, {**here, "score": "cells_beyond_or"}, flag)
        for name, rows, level in (
            ("decodable", of_target, None),
            ("above_or", of_target, OR_CAP),
            ("beyond_or", cells, CHANCE),
        ):
            chosen = rows[(rows.layer == -1) & (rows.step >= 0)].sort_values("step")
            # Of a single revision none can say what came first.
            if len(chosen) > 1:
                found = _first(chosen, level, {**here, "score": f"first_step_{name}"}, flag)
                first.setdefault(name, {})[target] = found["estimate"]
                yield found
    for name in ("decodable", "above_or"):
        steps = pd.Series({t: step for t, step in first[name].items() if role(design, t)}, dtype=float)
        for target, rank in steps.rank(method="min").items():
            of_target = accuracy[accuracy.target == target]
            yield {
                **site,
                "target": target,
                "score": f"order_{name}",
                "estimate": rank,
                "n_texts": int(of_target.n_texts.min()),
                "n_groups": int(of_target.n_groups.min()),
                "note": _joined(role(design, target), designs.closed_under_xor(design, target)),
            }


def _count(rows: pd.DataFrame, level: float, row: Mapping[str, Any], flag: str) -> dict[str, Any]:
    cells = rows[rows.layer >= 0]
    above = cells[cells.lower > level].sort_values(["step", "layer"])
    note = f"of {len(cells)} cells (layer, step)"
    if 0 < len(above) <= MOST_NAMED:
        note += ": " + ", ".join(f"layer {r.layer} at {r.revision}" for r in above.itertuples())
    return {**row, "level": 0.0, "estimate": float(len(above)), "note": _joined(flag, note)}


def _first(rows: pd.DataFrame, level: float | None, row: Mapping[str, Any], flag: str) -> dict[str, Any]:
    above = (rows.lower > (rows.level if level is None else level)).to_numpy()
    note = f"of {len(rows)} steps"
    if not above.any():
        return {**row, "estimate": np.nan, "note": _joined(flag, note, "never")}
    start = int(np.argmax(above))
    lost = rows.revision.to_numpy()[start:][~above[start:]]
    note += (
        f"; not at {', '.join(lost[:MOST_NAMED])}{' and others' if len(lost) > MOST_NAMED else ''}" if len(lost) else ""
    )
    return {**row, "estimate": float(rows.step.iloc[start]), "note": _joined(flag, note)}


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
