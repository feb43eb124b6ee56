"""What the common probes, controls and statistics say about the activations of a toy network.

The texts cross four factors in all 16 cells within each item (`superposition_inputs.paired_texts`). Items are
the units: one half trains the probes, the other half is scored. Nothing here is a probe of its own:
`probes.logistic`, the dichotomies and shuffled labels of `label_controls` and the U-statistic of
`statistics` are those that language models are read with.

    accuracy           of the logistic probe on held-out items; level .5
    worst_cell         the lowest accuracy of the four cells of the pair: above .5 only beyond an OR (level
                       .5)
    selectivity        accuracy minus the mean accuracy of random balanced labellings of the 16 cells,
                       orthogonal to the basic factors and to the target (level 0)
    shuffled           accuracy for labels permuted within items: a check of the code, .5
    interaction        ‖δ‖² itself, a U-statistic, in squared units of the activations (level 0)
    interaction_ratio  ‖δ‖² / (‖d_a‖ ‖d_b‖), every norm the square root of a U-statistic: how strongly the
                       direction of one factor depends on the other, whatever the scale of the activations
                       (level 0)

Pitfalls: a probe of d weights on a few hundred items has little to overfit, so the penalty is fixed, weak,
and the same for trained and random networks. Scale-free is needed: a random network's activations are larger
than a trained one's.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from counterprobe import label_controls, probes, statistics

FACTORS = ("0", "1", "2", "3")
ALL_PAIRS = tuple(combinations(range(4), 2))
LEVELS = {
    "accuracy": 0.5,
    "worst_cell": 0.5,
    "selectivity": 0.0,
    "shuffled": 0.5,
    "interaction": 0.0,
    "interaction_ratio": 0.0,
}


def controls(count: int, seed: int = 0) -> dict[tuple[int, int], Bool[np.ndarray, "cells N"]]:
    """For every pair of factors, labellings orthogonal to its XOR and to the basic factors: the same for all
    networks.
    """
    rng = np.random.default_rng(seed)
    return {
        pair: label_controls.dichotomies(FACTORS, [*FACTORS, "^".join(map(str, pair))], count, rng, at_least=1).T
        for pair in ALL_PAIRS
    }


def read(
    activations: Float[Tensor, "items cells d"],
    cells: Bool[Tensor, "cells factors"],
    dichotomies: Mapping[tuple[int, int], Bool[np.ndarray, "cells N"]],
    *,
    penalty: float,
    rng: np.random.Generator,
) -> dict[str, dict[str, float]]:
    """{"feature" | "i^j": {score: value}}: the mean over the basic factors, and the XOR of each pair of
    `dichotomies`.

    A basic factor has accuracy only. A ratio whose denominator the U-statistic finds at or below 0 is NaN.
    """
    n_items, n_cells, d = activations.shape
    pairs = list(dichotomies)
    basic = cells.numpy()
    n_basic = basic.shape[1]
    xors = np.stack([basic[:, i] ^ basic[:, j] for i, j in pairs], axis=1)
    of_cells = np.concatenate([basic, xors, *dichotomies.values()], axis=1)
    labels = np.tile(of_cells, (n_items, 1))
    items = np.repeat(np.arange(n_items), n_cells)
    shuffled = label_controls.shuffled_within_items(np.tile(xors, (n_items, 1)), items, rng)
    columns = torch.from_numpy(np.concatenate([labels, shuffled], axis=1))
    half = n_items // 2 * n_cells
    rows = activations.reshape(-1, d).float()
    probe = probes.logistic(rows[:half], columns[:half], float(penalty))
    scored = probes.score_texts(probe, rows[half:], columns[half:])
    correct = scored.correct.double().numpy().reshape(-1, n_cells, columns.shape[1])
    by_cell = correct.mean(axis=0)
    accuracy = by_cell.mean(axis=0)
    raw, ratios = interactions(activations, cells, pairs), interaction_ratios(activations, cells, pairs)
    result = {"feature": {"accuracy": float(accuracy[:n_basic].mean())}}
    start = n_basic + len(pairs)
    for k, (i, j) in enumerate(pairs):
        column, end = n_basic + k, start + dichotomies[i, j].shape[1]
        four = [by_cell[(basic[:, i] == a) & (basic[:, j] == b), column].mean() for a in (0, 1) for b in (0, 1)]
        result[f"{i}^{j}"] = {
            "accuracy": float(accuracy[column]),
            "worst_cell": float(min(four)),
            "selectivity": float(accuracy[column] - accuracy[start:end].mean()),
            "shuffled": float(accuracy[of_cells.shape[1] + k]),
            "interaction": raw[i, j],
            "interaction_ratio": ratios[i, j],
        }
        start = end
    return result


def interactions(
    activations: Float[Tensor, "items cells d"],
    cells: Bool[Tensor, "cells factors"],
    effects: Sequence[tuple[int, ...]],
) -> dict[tuple[int, ...], float]:
    """‖contrast‖² of each parity within items, by the U-statistic: (i,) is μ₁ - μ₀, (i, j) is δ."""
    signs = 2.0 * cells.double() - 1
    rows = [torch.stack([signs[:, f] for f in effect]).prod(dim=0) * 2 ** len(effect) for effect in effects]
    contrasts = torch.einsum("tc,icd->tid", torch.stack(rows) / len(cells), activations.double())
    return dict(zip(effects, statistics.interaction_norm(contrasts.numpy()).estimate.tolist(), strict=True))


def interaction_ratios(
    activations: Float[Tensor, "items cells d"],
    cells: Bool[Tensor, "cells factors"],
    pairs: Sequence[tuple[int, int]],
) -> dict[tuple[int, int], float]:
    """‖δ‖² / (‖d_a‖ ‖d_b‖) of every pair; NaN where a basic norm is not above 0."""
    basic = sorted({(factor,) for pair in pairs for factor in pair})
    norms = interactions(activations, cells, [*basic, *pairs])
    result = {}
    for i, j in pairs:
        known = min(norms[i,], norms[j,]) > 0
        result[i, j] = norms[i, j] / (norms[i,] * norms[j,]) ** 0.5 if known else float("nan")
    return result


def average(readings: Mapping[str, Mapping[str, float]], pairs: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Mean of every score over some of the pairs; NaN where one of them is NaN."""
    chosen = [readings[f"{i}^{j}"] for i, j in pairs]
    return {score: float(np.mean([reading[score] for reading in chosen])) for score in LEVELS}
