"""Random residual networks on redundant inputs: when is an XOR that nobody computes readable? (Fabien Roger's
test)

k independent signs, each copied r times, are the d = k·r inputs of `layers` random blocks

    h ← h + B ReLU(A h + a) + b,        A, B, a, b uniform on ±1/√d (the initialisation of torch.nn.Linear),

and the XOR of two of the k signs is read from the last h by the common logistic probe; level .5. Nothing is
trained but the probe. Claim C14: about .5 without redundancy (64 × 1), near 1 with much of it (16 × 16).

The governing ratio. There are k(k-1)/2 XORs and as many further products of all orders, and d dimensions for
them: if XOR readability depends on k and r through d / k^γ alone, then the probit of its accuracy is

    Φ⁻¹(accuracy) = f(log d - γ log k),

and γ follows from the slopes of a linear fit within the range where accuracy is neither .5 nor 1, one fit a
seed; `gamma_left_out` is the same fit without one k at a time, since an interval over seeds does not say how far γ
hangs on the few k of the design. The collapse is judged by how much of the variance of all cells a monotone
function of the ratio explains (isotonic regression), beside other candidates: d/(k choose 2), r, r/k and d.

Pitfall: the number of training texts limits a probe of d weights, so it is the same for all cells and in the
table.
"""

from collections.abc import Mapping
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy import optimize, stats
from torch import Tensor

from counterprobe import probes, superposition_cells, superposition_training
from counterprobe.superposition_cells import network_row

# Probits are taken of accuracies at least this far from .5 and from 1: beyond it they are noise or a ceiling.
MARGIN = 0.02
RATIOS = {
    "d / k^gamma": None,
    "d / (k choose 2)": lambda k, r: k * r / (k * (k - 1) / 2),
    "r": lambda k, r: r,
    "r / k": lambda k, r: r / k,
    "d": lambda k, r: k * r,
}


def random_network(
    signs: Float[Tensor, "n k"], copies: int, layers: int, generator: torch.Generator
) -> Float[Tensor, "n d"]:
    """The last residual stream of a random network over `copies` copies of each sign."""
    stream = signs.repeat(1, copies)
    d = stream.shape[1]

    def uniform(*shape: int) -> Tensor:
        return (2 * torch.rand(*shape, generator=generator) - 1) / d**0.5

    for _ in range(layers):
        into, offset, out, bias = uniform(d, d), uniform(1, d), uniform(d, d), uniform(1, d)
        stream = stream + torch.addmm(bias, torch.relu(torch.addmm(offset, stream, into)), out)
    return stream


def held_out_accuracy(
    features: Float[Tensor, "n d"], labels: Bool[Tensor, "n K"], train: int, penalty: float
) -> Float[np.ndarray, "K"]:
    """Accuracy of the common probe on the rows after the first `train`."""
    probe = probes.logistic(features[:train], labels[:train], float(penalty))
    return probes.score_texts(probe, features[train:], labels[train:]).correct.mean(dim=0).numpy()


def sweep(spec: Mapping[str, Any]) -> pd.DataFrame:
    """Every row of the experiment. spec: cells (a list of [k, r]), layers, networks, train, test, pairs,
    penalty.
    """
    rows = []
    for (k, r), seed in product(spec["cells"], range(spec["networks"])):
        generator = superposition_training.generator(41, seed, k, r)
        n_texts = spec["train"] + spec["test"]
        signs = (torch.randint(0, 2, (n_texts, k), generator=generator) * 2 - 1).float()
        stream = random_network(signs, r, spec["layers"], generator)
        where = {
            "experiment": "redundancy",
            "claim": "C14",
            "network": "random",
            "readout": "logistic",
            "seed": seed,
        }
        where |= {"m": k, "d": k * r, "copies": r, "depth": spec["layers"], "n_texts": spec["test"]}
        if not bool(torch.isfinite(stream).all()):
            reason = "diverged: the residual stream is not finite"
            rows += [
                network_row(**where, target=target, score="accuracy", reason=reason) for target in ("xor", "feature")
            ]
            continue
        pairs = list(combinations(range(k), 2))[:: max(1, k * (k - 1) // 2 // spec["pairs"])][: spec["pairs"]]
        bits = signs > 0
        basic = sorted({i for pair in pairs for i in pair})[: spec["pairs"]]
        labels = torch.cat([torch.stack([bits[:, i] ^ bits[:, j] for i, j in pairs], dim=1), bits[:, basic]], dim=1)
        accuracy = held_out_accuracy(stream, labels, spec["train"], spec["penalty"])
        for target, values in (("xor", accuracy[: len(pairs)]), ("feature", accuracy[len(pairs) :])):
            mean = float(values.mean())
            rows.append(network_row(**where, target=target, score="accuracy", level=0.5, estimate=mean))
    table = superposition_cells.networks(rows)
    return superposition_cells.networks(rows + _collapse(table[table.target == "xor"]))


def exponent(
    k: Float[np.ndarray, "cells"], d: Float[np.ndarray, "cells"], accuracy: Float[np.ndarray, "cells"]
) -> float:
    """γ of the ratio d / k^γ by least squares on the probits; NaN where too few cells lie between floor and
    ceiling.
    """
    inside = (accuracy > 0.5 + MARGIN) & (accuracy < 1 - MARGIN)
    if inside.sum() < 4 or len(set(k[inside])) < 2:
        return float("nan")
    probit = stats.norm.ppf(accuracy[inside])
    terms = np.column_stack([np.ones(inside.sum()), np.log(d[inside]), np.log(k[inside])])
    _, by_width, by_features = np.linalg.lstsq(terms, probit, rcond=None)[0]
    return float(-by_features / by_width)


def explained(ratio: Float[np.ndarray, "cells"], accuracy: Float[np.ndarray, "cells"]) -> float:
    """Share of the variance of accuracy that an increasing function of the ratio explains."""
    levels, index = np.unique(np.round(np.log(ratio), 9), return_inverse=True)
    counts = np.bincount(index)
    means = np.bincount(index, weights=accuracy) / counts
    fitted = (
        optimize.isotonic_regression(means, weights=counts).x[index]
        if len(levels) > 1
        else np.full(len(index), means[0])
    )
    return float(1 - np.square(accuracy - fitted).sum() / np.square(accuracy - accuracy.mean()).sum())


def _collapse(table: pd.DataFrame) -> list[dict[str, object]]:
    """For every seed: γ, and how well each candidate ratio orders the cells. γ is that of the OTHER seeds."""
    where = {
        "experiment": "redundancy",
        "claim": "C14",
        "network": "random",
        "target": "xor",
        "readout": "logistic",
    }
    gammas, rows = {}, []
    kept = {seed: group.dropna(subset="estimate") for seed, group in table.groupby("seed")}
    for seed, group in kept.items():
        gammas[seed] = exponent(group.m.to_numpy(float), group.d.to_numpy(float), group.estimate.to_numpy())
        known: dict[str, Any] = {"estimate": gammas[seed]}
        if np.isnan(gammas[seed]):
            known = {"reason": "fewer than four cells between floor and ceiling"}
        rows.append(network_row(**where, score="gamma", seed=seed, prediction=2.0, **known))
        for k in sorted(set(table.m)):
            # Seeds share one design: how far γ hangs on a single k is no part of an interval over seeds.
            rest = group[group.m != k]
            without = exponent(rest.m.to_numpy(float), rest.d.to_numpy(float), rest.estimate.to_numpy())
            known = {"estimate": without}
            if np.isnan(without):
                known = {"reason": "fewer than four cells between floor and ceiling"}
            name = f"without k = {k}"
            rows.append(network_row(**where, setting=name, score="gamma_left_out", seed=seed, prediction=2.0, **known))
    for seed, group in kept.items():
        others = [gamma for other, gamma in gammas.items() if other != seed and not np.isnan(gamma)]
        k, r, accuracy = group.m.to_numpy(float), group.copies.to_numpy(float), group.estimate.to_numpy()
        for name, ratio in RATIOS.items():
            factors = where | {"setting": name, "score": "explained", "seed": seed}
            if ratio is None and not others:
                rows.append(network_row(**factors, reason="no exponent from the other seeds"))
                continue
            values = k * r / k ** np.mean(others) if ratio is None else ratio(k, r)
            rows.append(network_row(**factors, level=0.0, estimate=explained(values, accuracy)))
    return rows
