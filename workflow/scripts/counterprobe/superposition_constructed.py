"""Weights written down, not learned: ANDs computed in superposition, and what can be read beside them.

Bernoulli U-AND (Vaintrob, Mendel and Haenni 2024, arXiv 2408.05451;
https://hackmd.io/@fcY63KdMTLqIQhxOgSpIwQ/rkQDoRzj6):

    W_ja ~ Bernoulli(p),   z = ReLU(W x - 1),   AND(a, b) read as the mean of z over the neurons connected to
                           both,
    p = log²(m) / √d   for m inputs and d neurons (natural logarithm).

The mean is exactly 1 for the pair alone and about p too high for every further active input, so the
construction needs p small, and p > 1 is no probability: such sizes are reported as excluded, not rounded. For
m = 100 that is all d < 450. `mean_centred` takes off half of that bias, p(s - 1)/2, which halves the maximal
error; the published read-off does not.

A network that spends nothing on XORs: `designated`. m features, each the AND of its own pair of inputs; each
neuron is given each feature with probability p and reads z = ReLU(Σ of the pairs it was given - 1). p = 0
stands for "exclusive": each neuron serves one feature, the next in turn, and no two features ever share one.
With features 0 and 1 both served by neuron j, with an off pair 00 with probability 1/3 and every further
probed feature 00 with probability 1/6,

    δ_j = E[z₁₁ - z₁₀ - z₀₁ + z₀₀] = 1/9 · (1/6)^(probed features also served) · (1 - s/m)^(others served),

and 0 for a neuron that serves one of them or none: ReLU(n - 1) bends at n = 1 only. Σ δ_j² is the analytic
interaction, with nothing fitted; XOR is unreadable exactly where no neuron is shared.

Inputs in superposition: W acts on Φᵀ(Φ x), Φ with unit Gaussian columns in half as many dimensions as inputs.

Pitfalls: a pair without a common neuron cannot be read at all, which is a reason and no error of 0. The
maximum is over the sampled pairs and backgrounds, so it can only grow with more of them.
"""

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from counterprobe import (
    superposition_cells,
    superposition_inputs,
    superposition_reading,
    superposition_training,
)
from counterprobe.superposition_cells import network_row


def connection_probability(m: int, d: int) -> float:
    """p = log²(m)/√d of the construction; above 1 where it does not exist."""
    return math.log(m) ** 2 / math.sqrt(d)


def bernoulli_weights(m: int, d: int, p: float, generator: torch.Generator) -> Float[Tensor, "d m"]:
    """Ones with probability p. ValueError where p is no probability."""
    if not 0 <= p <= 1:
        raise ValueError(f"p = {p:.3g} is no probability")
    return (torch.rand(d, m, generator=generator) < p).float()


def designated_weights(m: int, d: int, p: float, generator: torch.Generator) -> Float[Tensor, "d inputs"]:
    """Neurons connected to both inputs of each feature they were given; p = 0: one feature each, in turn."""
    given = (
        torch.nn.functional.one_hot(torch.arange(d) % m, m).float() if p == 0 else bernoulli_weights(m, d, p, generator)
    )
    return given.repeat_interleave(2, dim=1)


def hidden(weights: Float[Tensor, "d m"], inputs: Float[Tensor, "*n m"]) -> Float[Tensor, "*n d"]:
    """z = ReLU(W x - 1)."""
    return torch.relu(inputs @ weights.T - 1)


def mean_readoff(weights: Float[Tensor, "d m"], pairs: Int[Tensor, "pairs 2"]) -> Float[Tensor, "d pairs"]:
    """1 / |S| over the neurons S connected to both inputs of a pair; NaN where there is none."""
    both = weights[:, pairs[:, 0]] * weights[:, pairs[:, 1]]
    return both / both.sum(dim=0)


def universal_errors(
    weights: Float[Tensor, "d m"], pairs: Int[Tensor, "pairs 2"], inputs: Float[Tensor, "pairs 4 contexts m"]
) -> tuple[Float[Tensor, "pairs 4 contexts"], str]:
    """Errors of the mean read-off of AND, and a reason where a pair has no common neuron ('' = fine)."""
    readoffs = mean_readoff(weights, pairs)
    alone = int(readoffs.isnan().any(dim=0).sum())
    reason = f"{alone} of {len(pairs)} pairs have no neuron connected to both inputs" if alone else ""
    said = torch.einsum("pcnd,dp->pcn", hidden(weights, inputs), readoffs)
    return said - torch.tensor([0.0, 0.0, 0.0, 1.0])[None, :, None], reason


def analytic_interaction(weights: Float[Tensor, "d inputs"], rate: float) -> float:
    """‖δ‖² of features 0 and 1 of a designated network, on texts that probe features 0 to 3 (docstring
    above).
    """
    served = weights[:, 0::2]
    both = served[:, 0] * served[:, 1]
    probed = served[:, 2 : superposition_inputs.FACTORS].sum(dim=1)
    others = served[:, superposition_inputs.FACTORS :].sum(dim=1)
    delta = both / 9 * (1 / 6) ** probed * (1 - rate) ** others
    return float(delta.double().square().sum())


def superposed(inputs_of: int, generator: torch.Generator) -> Float[Tensor, "inputs inputs"]:
    """ΦᵀΦ for unit Gaussian columns in half as many dimensions: what a network sees of inputs in
    superposition.
    """
    directions = torch.randn(inputs_of // 2, inputs_of, generator=generator)
    directions = directions / directions.norm(dim=0)
    return directions.T @ directions


def universal_rows(spec: Mapping[str, Any]) -> list[dict[str, object]]:
    """C21: p and errors of Bernoulli U-AND against width. spec: m, widths, s, pairs, contexts, networks."""
    m, rows = spec["m"], []
    for d in spec["widths"]:
        p = connection_probability(m, d)
        common = {
            "experiment": "constructed",
            "claim": "C21",
            "network": "bernoulli",
            "m": m,
            "d": d,
            "depth": 1,
        }
        rows.append(network_row(**common, score="p", level=1.0, seed=0, estimate=p))
        for seed, s in product(range(spec["networks"]), spec["s"]):
            where = common | {
                "target": "and",
                "s": float(s),
                "p": p,
                "seed": seed,
                "n_texts": 4 * spec["contexts"],
            }
            if p > 1:
                reason = f"p = log²({m})/√{d} = {p:.2f} > 1: the construction does not exist"
                for readout, score in product(("mean", "mean_centred"), ("max_error", "rms_error")):
                    rows.append(network_row(**where, readout=readout, score=score, reason=reason))
                continue
            generator = superposition_training.generator(31, seed, m, d, s)
            weights = bernoulli_weights(m, d, p, generator)
            pairs = superposition_inputs.random_pairs(m, spec["pairs"], generator)
            inputs = superposition_inputs.four_cells(m, pairs, torch.full((spec["contexts"],), s), generator)
            errors, reason = universal_errors(weights, pairs, inputs)
            # With one of the pair on, each further active input adds 1 with probability p.
            bias = p * (s - 1)
            for readout, offset in (("mean", 0.0), ("mean_centred", bias / 2)):
                off = errors - offset
                values = {"max_error": off.abs().max(), "rms_error": off.square().mean().sqrt()}
                for score, value in values.items():
                    known = {"reason": reason} if reason else {"estimate": float(value)}
                    known |= {"prediction": bias - offset} if score == "max_error" else {}
                    rows.append(network_row(**where, readout=readout, score=score, **known))
    return rows


def designated_rows(spec: Mapping[str, Any]) -> list[dict[str, object]]:
    """C07: XOR of two computed features read from networks that spend nothing on it.

    spec: base {m, d, s, p}, m, d, s, p (lists, one factor at a time), networks, items, penalty, dichotomies.
    """
    base = {name: spec["base"][name] for name in ("m", "d", "s", "p")}
    settings = [base]
    for name in base:
        settings += [base | {name: value} for value in spec[name] if base | {name: value} not in settings]
    controls = {(0, 1): superposition_reading.controls(spec["dichotomies"])[0, 1]}
    rows = []
    for setting, seen, seed in product(settings, ("direct inputs", "superposed inputs"), range(spec["networks"])):
        rows += _designated_network(setting, seen, seed, spec, controls)
    return rows + _trend(superposition_cells.networks(rows))


def sweep(spec: Mapping[str, Any]) -> pd.DataFrame:
    """Every row of the experiment, one a network and score; spec has sections universal and designated."""
    return superposition_cells.networks(universal_rows(spec["universal"]) + designated_rows(spec["designated"]))


def _trend(table: pd.DataFrame) -> list[dict[str, object]]:
    """For every seed and kind of input, the slope of the XOR's accuracy on the analytic ‖δ‖² over all settings.

    Both kinds of input go through the same weights, whose ‖δ‖² is worked out for direct ones.
    """
    network = ["m", "d", "s", "p", "seed"]
    known = table[(table.score == "interaction") & (table.setting == "direct inputs")]
    analytic = known.set_index(network).prediction
    accuracy = table[table.score == "accuracy"]
    rows = []
    for _, group in accuracy.groupby("setting", sort=True):
        x = analytic.reindex(pd.MultiIndex.from_frame(group[network])).to_numpy()
        over = {"m": superposition_cells.NONE, "d": superposition_cells.NONE, "s": np.nan, "p": np.nan}
        rows += superposition_cells.slopes(group, x, over, score="accuracy_slope")
    return rows


def _designated_network(
    setting: Mapping[str, Any],
    seen: str,
    seed: int,
    spec: Mapping[str, Any],
    controls: Mapping[tuple[int, int], Bool[np.ndarray, "cells N"]],
) -> list[dict[str, object]]:
    m, d, s, p = setting["m"], setting["d"], float(setting["s"]), float(setting["p"])
    where = {"experiment": "constructed", "claim": "C07", "network": "designated", "setting": seen}
    where |= {"readout": "logistic", "m": m, "d": d, "s": s, "p": p, "depth": 1, "seed": seed}
    where |= {"target": "xor_needless", "n_texts": spec["items"] // 2 * 16}
    levels = superposition_reading.LEVELS
    if p > 1:
        reason = f"p = {p:g} > 1 is no probability"
        return [network_row(**where, score=score, reason=reason) for score in levels]
    generator = superposition_training.generator(32, seed, m, d, round(1000 * s), round(1000 * p))
    weights = designated_weights(m, d, p, generator)
    texts = superposition_inputs.paired_texts(m, s, spec["items"], "features", generator)
    inputs, predicted = texts.inputs, analytic_interaction(weights, min(1.0, s / m))
    if seen == "superposed inputs":
        inputs, predicted = inputs @ superposed(2 * m, generator), float("nan")
    activations = hidden(weights, inputs)
    rng = np.random.default_rng([seed, m, d])
    reading = superposition_reading.read(activations, texts.cells, controls, penalty=spec["penalty"], rng=rng)
    values = superposition_reading.average(reading, [(0, 1)])
    rows = []
    for score, value in values.items():
        known: dict[str, Any] = {"estimate": value} if np.isfinite(value) else {"reason": "a feature has no direction"}
        known |= {"prediction": predicted} if score == "interaction" else {}
        rows.append(network_row(**where, score=score, level=levels[score], **known))
    return rows
