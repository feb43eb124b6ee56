"""What every head and neuron contributes to a feature's effect at a layer, exactly: the stream is a sum (`components`).

Effects and interactions are Walsh contrasts (`statistics`), here summed over the items of each couple, the unit of all
intervals: any resampling of the units is then one matrix product. Squared lengths leave out the products of a unit with
itself (U-statistic), which stays unbiased under a bootstrap that pairs units with their own copies.

The attribution profile of a feature F at layer L is, for a component c of a block before L,

    p_F[c] = u_F · (mean over items of the contrast F of c's output),      u_F = d_F / ‖d_F‖,      Σ_c p_F[c] ≈ ‖d_F‖

where what is missing in the sum is the embedding's own contribution; biases have none. (Direct contributions only: what
a component does to later components is counted as theirs. Elhage et al. 2021,
https://transformer-circuits.pub/2021/framework/.)
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import special

from counterprobe import components, statistics
from counterprobe.components import Block, Readings, Sequences
from counterprobe.designs import Design
from counterprobe.statistics import Interval


@dataclass(frozen=True)
class Contrasts:
    """Effects of features and interactions of pairs, summed over the items of each couple ("units", g of them).

    residuals[l], heads[l], neurons[l]: target -> [g, width]; layers 0 … L and blocks 0 … L−1. sizes: items a unit.
    """

    features: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    residuals: tuple[dict[str, Float[np.ndarray, "_ _"]], ...]
    heads: tuple[dict[str, Float[np.ndarray, "_ _"]], ...]
    neurons: tuple[dict[str, Float[np.ndarray, "_ _"]], ...]
    sizes: Float[np.ndarray, " g"]
    strata: Int[np.ndarray, " g"]


def visible(design: Design, texts: Sequences) -> tuple[str, ...]:
    """Factors that are decided by the tokens up to the read one; a causal model knows nothing of the others."""
    return tuple(
        factor
        for factor, labels in design.factors.items()
        if np.array_equal(labels[texts.first_text][texts.of_text], labels)
    )


def contrasts(readings: Readings, design: Design, texts: Sequences, features: Sequence[str]) -> Contrasts:
    """Effects and interactions of all residuals and components, one block at a time."""
    pairs = tuple(itertools.combinations(features, 2))
    targets = [*features, *("^".join(pair) for pair in pairs)]
    couple_of_item = first_of(design.couples, design.items)
    couples, unit_of_item = np.unique(couple_of_item, return_inverse=True)
    member = np.eye(len(couples))[:, unit_of_item]

    def summed(level: torch.Tensor) -> dict[str, Float[np.ndarray, "g width"]]:
        found = statistics.walsh_contrasts(level.double().cpu().numpy()[texts.of_text], design, targets)
        return {target: member @ effect for target, effect in zip(targets, found, strict=True)}

    return Contrasts(
        features=tuple(features),
        pairs=pairs,
        residuals=tuple(summed(level) for level in readings.residuals),
        heads=tuple(summed(level) for level in readings.heads),
        neurons=tuple(summed(level) for level in readings.neurons),
        sizes=member.sum(axis=1),
        strata=first_of(first_of(design.strata, design.items), unit_of_item),
    )


def profile(
    measured: Contrasts, blocks: Sequence[Block], feature: str, layer: int, weights: Float[np.ndarray, "R g"]
) -> Float[np.ndarray, "R C"]:
    """Exact contribution of every head and neuron of blocks 0 … layer − 1 to d_feature at a layer, for every weighting of
    the units: block by block, heads before neurons."""
    share = weights / (weights @ measured.sizes)[:, None]
    effect = share @ measured.residuals[layer][feature]
    unit = effect / np.maximum(np.linalg.norm(effect, axis=1, keepdims=True), np.finfo(float).tiny)
    parts = []
    for block, z, a in zip(blocks[:layer], measured.heads, measured.neurons, strict=False):
        for kind, level in ((components.HEADS, z), (components.NEURONS, a)):
            out = components.writes(block.out(kind)).double().cpu().numpy()
            along = (share @ level[feature]) * (unit @ out.T)
            parts.append(along.reshape(len(along), block.count(kind), -1).sum(axis=2))
    return np.concatenate(parts, axis=1)


def squared(
    sums: Float[np.ndarray, "g d"], sizes: Float[np.ndarray, " g"], weights: Float[np.ndarray, "R g"]
) -> Float[np.ndarray, " R"]:
    """‖mean contrast‖² without the products of a unit with itself, for every weighting of the units: unbiased also under
    a bootstrap, which pairs a unit with its own copies."""
    gram = sums @ sums.T
    own = (weights**2) @ gram.diagonal()
    counts = (weights @ sizes) ** 2 - (weights**2) @ (sizes**2)
    return (((weights @ gram) * weights).sum(axis=1) - own) / counts


def has_effect(measured: Contrasts, feature: str, layer: int) -> bool:
    """Whether the 95% interval of ‖d_feature‖² at a layer lies above 0: there is no direction to project on otherwise."""
    g = len(measured.sizes)
    deletions = np.concatenate([np.ones((1, g)), 1 - np.eye(g)])
    return bool(jackknifed(squared(measured.residuals[layer][feature], measured.sizes, deletions), 0.95).lower > 0)


def jackknifed(draws: Float[np.ndarray, "*K draws"], confidence: float) -> Interval:
    """Interval of any smooth function of the units, from its value over all of them, then without each in turn.

    Student's t with g − 1 degrees of freedom.
    """
    estimate, without = draws[..., 0], draws[..., 1:]
    g = without.shape[-1]
    error = np.sqrt((g - 1) / g * ((without - without.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1))
    half = special.stdtrit(g - 1, (1 + confidence) / 2) * error
    return Interval(np.asarray(estimate), np.asarray(estimate - half), np.asarray(estimate + half))


def first_of(values: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Int[np.ndarray, " g"]:
    """The value that all members of each group share, by ascending group."""
    return values[np.unique(groups, return_index=True)[1]]
