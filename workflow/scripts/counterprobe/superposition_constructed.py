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

XOR from U-AND: the Bernoulli network spends nothing on XORs, and XOR = x + y - 2 AND has twice the error of the
AND wherever x and y are known,

    mean, mean_centred    x and y taken from the layer's input, as ⟨Φ_a, v⟩; AND from the layer
    mean_hidden           all three from the layer: with s inputs on, and over the neurons that a is or is not
                          connected to,  x_a = (mean z, connected - mean z, not) / (1 - (1 - p)^(s - 1)),

whose expectation over W is exact for s >= 2; of a single active input no neuron knows. Over all inputs of s ones
the error of AND is at most

    max Σ_{i ∈ B} |S_ab ∩ S_i| / |S_ab|   over sets B of s - 1 other inputs,   S: the neurons connected to it,

(`error_bound`), so a threshold of 1/2 on the XOR is right everywhere where that is below 1/4. Beside it, the
common probes read the layer, and a Gaussian layer of equal size without biases.

Inputs in superposition: W acts on Φᵀ(Φ x), Φ with unit Gaussian columns in fewer dimensions than inputs (half as
many for `designated`). Cross-talk then reaches every neuron from all of its about pm inputs, and x and y themselves.

Pitfalls: a pair without a common neuron cannot be read at all, which is a reason and no error of 0. The
maximum is over the sampled pairs and backgrounds, so it can only grow with more of them. A neuron with bias -1 is
silent while a single input is on, so texts without a background hold no XOR that a probe of the layer could find.
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
from counterprobe.progress import UserError
from counterprobe.superposition_cells import network_row

DIRECT = "direct inputs"
# The other four pairs of the probed factors would be read from the same neurons once more.
PROBED_PAIRS = ((0, 1), (2, 3))
NOT_READ = "a pair has no common neuron, or one of its inputs all neurons or none"
AND, XOR = (0.0, 0.0, 0.0, 1.0), (0.0, 1.0, 1.0, 0.0)


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
    return said - torch.tensor(AND)[None, :, None], reason


def input_readoff(weights: Float[Tensor, "d m"], p: float, s: int) -> Float[Tensor, "d m"]:
    """Each input from the layer alone, for texts with s >= 2 inputs on (docstring above); NaN for an input that is
    connected to all neurons or to none.
    """
    others = 1 - weights
    return (weights / weights.sum(dim=0) - others / others.sum(dim=0)) / (1 - (1 - p) ** (s - 1))


def error_bound(weights: Float[Tensor, "d m"], pairs: Int[Tensor, "pairs 2"], s: int) -> Float[Tensor, "pairs"]:
    """Of each pair, the largest error of the mean read-off of its AND over every input with s ones (docstring
    above); NaN for a pair without a common neuron.
    """
    shares = (mean_readoff(weights, pairs).T @ weights).scatter(1, pairs, 0.0)
    return shares.topk(s - 1, dim=1).values.sum(dim=1)


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


def superposed(inputs_of: int, dimensions: int, generator: torch.Generator) -> Float[Tensor, "inputs inputs"]:
    """ΦᵀΦ for unit Gaussian columns in so many dimensions: what a network sees of inputs in superposition."""
    directions = torch.randn(dimensions, inputs_of, generator=generator)
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
    for setting, seen, seed in product(settings, (DIRECT, "superposed inputs"), range(spec["networks"])):
        rows += _designated_network(setting, seen, seed, spec, controls)
    return rows + _trend(superposition_cells.networks(rows))


def xor_rows(spec: Mapping[str, Any]) -> list[dict[str, object]]:
    """XOR of two inputs read from Bernoulli U-AND: analytic read-offs against width, and probes beside them.

    spec: m, dimensions (of inputs in superposition), widths, s, pairs, contexts, networks, probed {widths, s, items,
    penalty, dichotomies}. The same weights, pairs and backgrounds are read with direct and with superposed inputs.
    UserError where dimensions are not fewer than inputs.
    """
    if max(spec["dimensions"]) >= spec["m"]:
        raise UserError(
            f"superposition.constructed.xor: {spec['m']} inputs are in superposition in fewer dimensions than that, "
            f"not {max(spec['dimensions'])}; lower dimensions or raise m"
        )
    rows = []
    for seed in range(spec["networks"]):
        seen = _kinds_of_input(spec, seed)
        for d, s in product(spec["widths"], spec["s"]):
            rows += _read_off(d, s, seed, seen, spec)
        for d, s in product(spec["probed"]["widths"], spec["probed"]["s"]):
            rows += _probed(d, float(s), seed, seen, spec)
    accuracies = superposition_cells.networks(row for row in rows if row["score"] == "accuracy")
    return rows + superposition_cells.paired(
        accuracies, "network", "bernoulli", "random", lambda built, drawn: built - drawn, name="bernoulli - random"
    )


def sweep(spec: Mapping[str, Any]) -> pd.DataFrame:
    """Every row of the experiment, one a network and score; spec has sections universal, xor and designated."""
    return superposition_cells.networks(
        universal_rows(spec["universal"]) + xor_rows(spec["xor"]) + designated_rows(spec["designated"])
    )


def _kinds_of_input(spec: Mapping[str, Any], seed: int) -> dict[str, Float[Tensor, "m m"]]:
    """What W acts on, as a matrix after the inputs: the identity, and ΦᵀΦ of each number of dimensions."""
    m = spec["m"]
    return {DIRECT: torch.eye(m)} | {
        f"superposed inputs, {count} dimensions": superposed(
            m, count, superposition_training.generator(33, seed, m, count)
        )
        for count in spec["dimensions"]
    }


def _bernoulli(m: int, d: int, seed: int) -> tuple[Float[Tensor, "d m"] | None, float, str]:
    """Weights and their p; no weights but a reason where p > 1."""
    p = connection_probability(m, d)
    if p > 1:
        return None, p, f"p = log²({m})/√{d} = {p:.2f} > 1: the construction does not exist"
    return bernoulli_weights(m, d, p, superposition_training.generator(34, seed, m, d)), p, ""


def _read_off(
    d: int, s: int, seed: int, seen: Mapping[str, Float[Tensor, "m m"]], spec: Mapping[str, Any]
) -> list[dict[str, object]]:
    m = spec["m"]
    weights, p, reason = _bernoulli(m, d, seed)
    bias = p * (s - 1)
    where = {"experiment": "constructed", "network": "bernoulli", "m": m, "d": d, "s": float(s), "p": p, "depth": 1}
    where |= {"seed": seed, "n_texts": 4 * spec["contexts"]}
    kinds = [(target, readout) for target in ("and", "xor") for readout in ("mean", "mean_centred")]
    kinds.append(("xor", "mean_hidden"))
    scores = ("max_error", "rms_error", "threshold_accuracy")
    rows = []
    generator = superposition_training.generator(35, seed, m, d, s)
    pairs = superposition_inputs.random_pairs(m, spec["pairs"], generator)
    inputs = superposition_inputs.four_cells(m, pairs, torch.full((spec["contexts"],), s), generator)
    if weights is not None:
        bound = float(error_bound(weights, pairs, s).max())
        known = {"estimate": bound} if math.isfinite(bound) else {"reason": "a pair has no common neuron"}
    else:
        known = {"reason": reason}
    rows.append(network_row(**where, setting=DIRECT, target="and", readout="mean", score="error_bound", **known))
    for setting, matrix in seen.items():
        said = {} if weights is None else _said(weights, p, s, pairs, inputs @ matrix)
        errors = {}
        for target, readout in kinds:
            here = where | {"setting": setting, "target": target, "readout": readout}
            if weights is None:
                rows += [network_row(**here, score=score, reason=reason) for score in scores]
                continue
            truth = torch.tensor(AND if target == "and" else XOR)[None, :, None]
            values = said[target, readout]
            off = values - truth
            errors[target, readout] = {"max_error": off.abs().max(), "rms_error": off.square().mean().sqrt()}
            found = errors[target, readout] | {"threshold_accuracy": ((values > 0.5) == (truth > 0.5)).float().mean()}
            # Worked out for inputs without cross-talk only.
            mean = (bias / 2 if readout == "mean_centred" else bias) * (1 if target == "and" else 2)
            for score, value in found.items():
                known = {"estimate": float(value)} if values.isfinite().all() else {"reason": NOT_READ}
                known |= {"prediction": mean} if score == "max_error" and setting == DIRECT else {}
                known |= {"level": 0.5} if score == "threshold_accuracy" else {}
                rows.append(network_row(**here, score=score, **known))
        for readout, score in product(("mean", "mean_centred", "mean_hidden"), ("max_error", "rms_error")):
            here = where | {"setting": setting, "target": "xor / and", "readout": readout, "score": f"{score}_ratio"}
            if weights is None:
                rows.append(network_row(**here, reason=reason, prediction=2.0))
                continue
            of_and = errors["and", "mean" if readout == "mean_hidden" else readout][score]
            ratio = float(errors["xor", readout][score] / of_and)
            known = {"estimate": ratio} if math.isfinite(ratio) else {"reason": NOT_READ}
            rows.append(network_row(**here, prediction=2.0, **known))
    return rows


def _said(
    weights: Float[Tensor, "d m"],
    p: float,
    s: int,
    pairs: Int[Tensor, "pairs 2"],
    seen: Float[Tensor, "pairs 4 contexts m"],
) -> dict[tuple[str, str], Float[Tensor, "pairs 4 contexts"]]:
    """What every read-off of (target, readout) says."""
    layer = hidden(weights, seen)
    of_and = torch.einsum("pcnd,dp->pcn", layer, mean_readoff(weights, pairs))
    centred = of_and - p * (s - 1) / 2
    read = input_readoff(weights, p, s)
    both = torch.einsum("pcnd,dp->pcn", layer, read[:, pairs[:, 0]] + read[:, pairs[:, 1]])
    beside = seen.gather(3, pairs[:, None, None, :].expand(*seen.shape[:3], 2)).sum(dim=3)
    return {
        ("and", "mean"): of_and,
        ("and", "mean_centred"): centred,
        ("xor", "mean"): beside - 2 * of_and,
        ("xor", "mean_centred"): beside - 2 * centred,
        ("xor", "mean_hidden"): both - 2 * of_and,
    }


def _probed(
    d: int, s: float, seed: int, seen: Mapping[str, Float[Tensor, "m m"]], spec: Mapping[str, Any]
) -> list[dict[str, object]]:
    """Probes of the layer and of a Gaussian one; a text has s inputs on in the mean, two of them probed ones."""
    m, probed = spec["m"], spec["probed"]
    every = superposition_reading.controls(probed["dichotomies"])
    controls = {pair: every[pair] for pair in PROBED_PAIRS}
    weights, _, reason = _bernoulli(m, d, seed)
    # A live pair has 4/3 inputs on, and the two probed pairs are not drawn.
    live = (s - 2) * 3 / 4 * (m // 2) / (m // 2 - 2)
    texts = superposition_inputs.paired_texts(
        m // 2, live, probed["items"], "inputs", superposition_training.generator(36, seed, m, round(1000 * s))
    )
    gaussian = torch.randn(d, m, generator=superposition_training.generator(37, seed, m, d))
    rows = []
    for setting, matrix in seen.items():
        inputs = texts.inputs @ matrix
        for network in ("bernoulli", "random"):
            where = {"experiment": "constructed", "network": network, "setting": setting, "target": "xor", "m": m}
            where |= {"readout": "logistic", "d": d, "s": s, "depth": 1, "seed": seed}
            where |= {"n_texts": probed["items"] // 2 * 16}
            if network == "bernoulli" and weights is None:
                levels = superposition_reading.LEVELS
                rows += [network_row(**where, score=score, reason=reason) for score in levels]
                continue
            layer = hidden(weights, inputs) if network == "bernoulli" else torch.relu(inputs @ gaussian.T)
            rng = np.random.default_rng([seed, m, d])
            reading = superposition_reading.read(layer, texts.cells, controls, penalty=probed["penalty"], rng=rng)
            rows += _scored(superposition_reading.average(reading, PROBED_PAIRS), where)
    return rows


def _trend(table: pd.DataFrame) -> list[dict[str, object]]:
    """For every seed and kind of input, the slope of the XOR's accuracy on the analytic ‖δ‖² over all settings.

    Both kinds of input go through the same weights, whose ‖δ‖² is worked out for direct ones.
    """
    network = ["m", "d", "s", "p", "seed"]
    known = table[(table.score == "interaction") & (table.setting == DIRECT)]
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
        inputs, predicted = inputs @ superposed(2 * m, m, generator), float("nan")
    activations = hidden(weights, inputs)
    rng = np.random.default_rng([seed, m, d])
    reading = superposition_reading.read(activations, texts.cells, controls, penalty=spec["penalty"], rng=rng)
    values = superposition_reading.average(reading, [(0, 1)])
    return _scored(values, where, {"interaction": predicted})


def _scored(
    values: Mapping[str, float], where: Mapping[str, object], predictions: Mapping[str, float] | None = None
) -> list[dict[str, object]]:
    rows = []
    for score, value in values.items():
        known: dict[str, Any] = {"estimate": value} if np.isfinite(value) else {"reason": "a feature has no direction"}
        known |= {"level": superposition_reading.LEVELS[score]}
        known |= {"prediction": predictions[score]} if predictions and score in predictions else {}
        rows.append(network_row(**where, score=score, **known))
    return rows
