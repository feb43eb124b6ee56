"""A small task that needs no XOR, learned in superposition: is the XOR of what the network computes readable
anyway?

The task. 2m sparse boolean inputs in m pairs; feature t is the AND of pair t, the output is all m features,
and nothing relates one pair to another. The network embeds the inputs in a residual stream of width d (m
features share d neurons a layer, superposition where m > d) and has `depth` blocks,

    h ← E x,      h ← h + B_l ReLU(A_l h + b_l),      output = U h + c,

with a squared loss in which ones weigh as much as zeros (an affine read-off of the inputs errs by 1/4 on AND,
so that the network has to compute). Weights: trained, and the very initialisation that training started from.

Read at the last residual stream; what Hoagy's and Newgas's explanations predict of each is in
`superposition`:

    xor_needless     XOR of two features the network computes; no output needs it
    xor_computed     XOR of the two inputs of one feature: their AND is computed, their XOR is not asked for
    xor_uncomputed   XOR of two inputs of different features: no function of the two is asked for

All networks of one depth are one stack (`superposition_training`), whatever their m, d, s and seed.

Pitfalls. Networks that have not learned the task prove nothing: a trained network whose `rms_error` (ones and
zeros counted alike; 1/2 without any information, 1/4 of the minimax affine read-off of all inputs) is not below
`learned` is left out of every score of an XOR, for that reason; its initialisation stays. Crowding m/d is varied
in two ways, and neither is clean: with m, the number of live pairs stays s, so that the rate s/m of each pair, the
share of ones in the task and the number of live pairs beside the probed ones, s (m - 4)/m, all change; with d, the
probe has another number of weights. Slopes of the trained networks are therefore also taken paired, minus the same
networks' initialisation on the same texts, and both ways have to agree.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from counterprobe import (
    superposition_cells,
    superposition_inputs,
    superposition_reading,
    superposition_training,
)
from counterprobe.superposition_cells import network_row

COMPUTED = ((0, 1), (2, 3))
UNCOMPUTED = ((0, 2), (0, 3), (1, 2), (1, 3))
TARGETS = {
    "xor_needless": ("features", superposition_reading.ALL_PAIRS),
    "xor_computed": ("inputs", COMPUTED),
    "xor_uncomputed": ("inputs", UNCOMPUTED),
}
SCALE = 1000  # s is keyed in thousandths, since generators are keyed by whole numbers


@dataclass(frozen=True)
class Cell:
    """One network of the sweep: m features in 2m inputs, width, features live at once, blocks, seed."""

    m: int
    d: int
    s: float
    depth: int
    seed: int

    def generator(self, purpose: int) -> torch.Generator:
        """Depends on what the network is, never on what it is trained beside."""
        return superposition_training.generator(purpose, self.seed, self.m, self.d, round(self.s * SCALE), self.depth)

    @property
    def rate(self) -> float:
        """Probability that a pair is live."""
        return min(1.0, self.s / self.m)


def plan(spec: Mapping[str, Any]) -> list[Cell]:
    """The base cell and, one factor at a time, every value of m, d, s and depth; `seeds` networks of each."""
    base = {name: spec["base"][name] for name in ("m", "d", "s", "depth")}
    settings = [base]
    for name in base:
        settings += [base | {name: value} for value in spec[name] if base | {name: value} not in settings]
    return [
        Cell(**setting | {"s": float(setting["s"])}, seed=seed)
        for setting in settings
        for seed in range(spec["networks"])
    ]


def initial(cells: Sequence[Cell]) -> dict[str, Tensor]:
    """Stacked initial parameters, padded with zeros to the largest m and d; all cells have one depth."""
    depth = cells[0].depth
    inputs, width, outputs = 2 * max(c.m for c in cells), max(c.d for c in cells), max(c.m for c in cells)
    shapes = {"embed": (inputs, width), "unembed": (width, outputs), "offset": (1, outputs)}
    for layer in range(depth):
        shapes |= {f"in_{layer}": (width, width), f"bias_{layer}": (1, width), f"out_{layer}": (width, width)}
    parameters = {name: torch.zeros(len(cells), *shape) for name, shape in shapes.items()}
    for index, cell in enumerate(cells):
        generator = cell.generator(21)
        for name in shapes:
            if name == "offset" or name.startswith("bias"):
                continue
            rows = 2 * cell.m if name == "embed" else cell.d
            columns = cell.m if name == "unembed" else cell.d
            # He's gain where a ReLU follows; everything else keeps the variance of one unit of the stream.
            scale = (2 if name.startswith("in_") else 1) / cell.d
            parameters[name][index, :rows, :columns] = torch.randn(rows, columns, generator=generator) * scale**0.5
    return parameters


def residual(parameters: Mapping[str, Tensor], inputs: Float[Tensor, "N n inputs"]) -> Float[Tensor, "N n d"]:
    """The last residual stream of every network of a stack."""
    stream = torch.bmm(inputs, parameters["embed"])
    layer = 0
    while f"in_{layer}" in parameters:
        hidden = torch.relu(torch.baddbmm(parameters[f"bias_{layer}"], stream, parameters[f"in_{layer}"]))
        stream = torch.baddbmm(stream, hidden, parameters[f"out_{layer}"])
        layer += 1
    return stream


def outputs(parameters: Mapping[str, Tensor], inputs: Float[Tensor, "N n inputs"]) -> Float[Tensor, "N n m"]:
    """What every network says of every feature."""
    return torch.baddbmm(parameters["offset"], residual(parameters, inputs), parameters["unembed"])


def train(
    cells: Sequence[Cell], spec: Mapping[str, Any]
) -> tuple[dict[str, Tensor], superposition_training.TrainedStack]:
    """(initial parameters, what training made of them) of networks of one depth, in one stack."""
    start = initial(cells)
    return start, superposition_training.train_stack(
        start,
        _draws(cells, spec["batch"]),
        _loss(cells),
        steps=spec["steps"],
        learning_rate=spec["learning_rate"],
    )


def sweep(spec: Mapping[str, Any]) -> pd.DataFrame:
    """Every row of the experiment, one a network and score.

    spec: base {m, d, s, depth}, m, d, s, depth (lists), networks, steps, batch, learning_rate, items,
    penalty, dichotomies, learned (the bar on the error of the task).
    """
    every = plan(spec)
    controls = superposition_reading.controls(spec["dichotomies"])
    rows = []
    for depth in sorted({cell.depth for cell in every}):
        cells = [cell for cell in every if cell.depth == depth]
        start, trained = train(cells, spec)
        for index, cell in enumerate(cells):
            for network, parameters in (("init", start), ("trained", trained.parameters)):
                own = {name: value[index : index + 1] for name, value in parameters.items()}
                reason = trained.reasons[index] if network == "trained" else ""
                rows += _rows_of(cell, network, own, reason, spec, controls)
    table = superposition_cells.networks(rows)
    rows += _differences(table)
    rows += _slopes(superposition_cells.networks(rows), spec)
    return superposition_cells.networks(rows)


def _draws(cells: Sequence[Cell], batch: int) -> Callable[[int], Tensor]:
    generators = [cell.generator(22) for cell in cells]
    width = 2 * max(cell.m for cell in cells)

    def draw(count: int) -> Float[Tensor, "steps N batch inputs"]:
        drawn = torch.zeros(count, len(cells), batch, width)
        for index, (cell, generator) in enumerate(zip(cells, generators, strict=True)):
            live = superposition_inputs.live_pairs((count, batch, cell.m), cell.rate, generator)
            drawn[:, index, :, : 2 * cell.m] = live
        return drawn

    return draw


def _loss(cells: Sequence[Cell]) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    """Weighted mean squared error: outputs that are padding weigh nothing, ones as much as zeros together."""
    exists = torch.zeros(len(cells), 1, max(cell.m for cell in cells))
    ones = torch.ones(len(cells), 1, 1)
    for index, cell in enumerate(cells):
        exists[index, :, : cell.m] = 1 / cell.m
        ones[index] = (1 - cell.rate / 3) / (cell.rate / 3)

    def loss(parameters: Mapping[str, Tensor], inputs: Float[Tensor, "N batch inputs"]) -> Float[Tensor, "N"]:
        wanted = inputs[..., 0::2] * inputs[..., 1::2]
        weight = (1 + (ones - 1) * wanted) * exists
        return ((outputs(parameters, inputs) - wanted).square() * weight).sum(dim=2).mean(dim=1)

    return loss


def _rows_of(
    cell: Cell,
    network: str,
    parameters: Mapping[str, Tensor],
    reason: str,
    spec: Mapping[str, Any],
    controls: Mapping[tuple[int, int], Bool[np.ndarray, "cells N"]],
) -> list[dict[str, object]]:
    where = {"experiment": "trained", "network": network, "m": cell.m, "d": cell.d, "s": float(cell.s)}
    where |= {"depth": cell.depth, "seed": cell.seed, "readout": "logistic"}
    n_texts = spec["items"] // 2 * 16
    expected = [(target, score) for target in TARGETS for score in superposition_reading.LEVELS]
    if reason:
        scores = [*expected, ("feature", "accuracy"), ("and", "rms_error")]
        return [
            network_row(
                **where,
                claim=_claim(target, score),
                target=target,
                score=score,
                n_texts=n_texts,
                reason=reason,
            )
            for target, score in scores
        ]
    error = _task_error(cell, parameters, spec)
    if not np.isfinite(error):
        return _rows_of(cell, network, parameters, "diverged: the outputs are not finite", spec, controls)
    rows = [network_row(**where, target="and", score="rms_error", estimate=error, n_texts=n_texts)]
    unlearned = ""
    if network == "trained" and error >= spec["learned"]:
        unlearned = f"did not learn the task: an error of {spec['learned']:g} or more"
    for level in ("features", "inputs"):
        generator = cell.generator(23)
        texts = superposition_inputs.paired_texts(cell.m, cell.s, spec["items"], level, generator)
        padded = torch.zeros(*texts.inputs.shape[:2], parameters["embed"].shape[1])
        padded[..., : 2 * cell.m] = texts.inputs
        flat = padded.flatten(0, 1)[None]
        stream = residual(parameters, flat)[0].unflatten(0, padded.shape[:2])[..., : cell.d]
        readings = superposition_reading.read(
            stream,
            texts.cells,
            controls,
            penalty=spec["penalty"],
            rng=np.random.default_rng([cell.seed, cell.m, cell.d]),
        )
        for target, (read_at, pairs) in TARGETS.items():
            if read_at != level:
                continue
            for score, value in superposition_reading.average(readings, pairs).items():
                reason = unlearned or ("" if np.isfinite(value) else "a basic feature has no direction")
                known: dict[str, Any] = {"reason": reason} if reason else {"estimate": value}
                known |= {"level": superposition_reading.LEVELS[score], "claim": _claim(target, score)}
                rows.append(network_row(**where, target=target, score=score, n_texts=n_texts, **known))
        if level == "features":
            accuracy = readings["feature"]["accuracy"]
            rows.append(
                network_row(**where, target="feature", score="accuracy", level=0.5, estimate=accuracy, n_texts=n_texts)
            )
    return rows


def _task_error(cell: Cell, parameters: Mapping[str, Tensor], spec: Mapping[str, Any]) -> float:
    """Root mean square error of the outputs on the probed texts; ones and zeros count the same, as in the loss."""
    texts = superposition_inputs.paired_texts(cell.m, cell.s, spec["items"], "features", cell.generator(23))
    flat = torch.zeros(1, texts.inputs.shape[0] * texts.inputs.shape[1], parameters["embed"].shape[1])
    flat[..., : 2 * cell.m] = texts.inputs.flatten(0, 1)
    wanted = flat[..., 0::2] * flat[..., 1::2]
    error = (outputs(parameters, flat) - wanted)[0, :, : cell.m]
    return float((_mean_square(error, wanted[0, :, : cell.m]) / 2) ** 0.5)


def _mean_square(error: Float[Tensor, "n m"], wanted: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
    """Mean square over ones plus mean square over zeros."""
    square = error.square()
    return (square * wanted).sum() / wanted.sum() + (square * (1 - wanted)).sum() / (1 - wanted).sum()


def _claim(target: str, score: str) -> str:
    if target != "xor_needless":
        return ""
    if score in ("interaction", "interaction_ratio"):
        return "C05"
    return "C06" if score in ("accuracy", "worst_cell", "selectivity") else ""


def _differences(table: pd.DataFrame) -> list[dict[str, object]]:
    """Trained minus initialisation, and pairs whose AND is computed minus pairs of which nothing is."""
    measured = table[table.score.isin(["accuracy", "interaction_ratio"]) & table.target.isin(list(TARGETS))]
    accuracy = measured[measured.score == "accuracy"]
    rows = superposition_cells.paired(
        measured, "network", "trained", "init", lambda trained, init: trained - init, name="trained - init"
    )
    rows += superposition_cells.paired(
        accuracy,
        "target",
        "xor_computed",
        "xor_uncomputed",
        lambda computed, other: computed - other,
        name="xor_computed - xor_uncomputed",
    )
    return rows


def _slopes(table: pd.DataFrame, spec: Mapping[str, Any]) -> list[dict[str, object]]:
    """Slopes on crowding m/d, over m at fixed width and over width at fixed m, of both kinds of weights and of their
    paired differences (the same cells on both sides).
    """
    base = spec["base"]
    rows = []
    for over, fixed in (("m", "d"), ("d", "m")):
        chosen = table[
            (table[fixed] == base[fixed])
            & (table.s == base["s"])
            & (table.depth == base["depth"])
            & table.network.isin(["trained", "init", "trained - init"])
            & table.target.isin([*TARGETS, "xor_computed - xor_uncomputed"])
            & table.score.isin(["accuracy", "interaction", "interaction_ratio"])
        ]
        for (_, _, score), group in chosen.groupby(["network", "target", "score"], sort=True):
            crowding = group.m.to_numpy() / group.d.to_numpy()
            factors = {over: superposition_cells.NONE, "setting": f"over m/d at fixed {fixed}"}
            rows += superposition_cells.slopes(group, crowding, factors, score=f"{score}_slope")
    return rows
