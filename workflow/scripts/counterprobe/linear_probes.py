"""Linear probes in the space of the activations, and what each says of texts it was not fitted on.

Three families, every one a direction and a boundary for each label: L2 logistic regression (the reference), the
difference of the class means, and Fisher's discriminant. Many labels share one activation matrix and are fitted at once.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from counterprobe.probes import TIE, solve, standardise


@dataclass(frozen=True)
class LinearProbe:
    """logit = x·directions + intercepts, x in raw activation units; one column a label (float64)."""

    directions: Float[Tensor, "d K"]
    intercepts: Float[Tensor, " K"]


@dataclass(frozen=True)
class TextScores:
    """What a probe says of each text, one column a label: logit, right (1, 0, ½ for a tie), bits, signed distance.

    bits = 1 − log₂ loss: 1 for a sure and right answer, 0 for a coin. margin = y(w·x + b)/‖w‖ in activation units, 0
    for a probe without a direction.
    """

    decision: Float[Tensor, "n K"]
    correct: Float[Tensor, "n K"]
    bits: Float[Tensor, "n K"]
    margin: Float[Tensor, "n K"]


def logistic(
    features: Float[Tensor, "n d"], labels: Bool[Tensor, "n K"], penalty: Float[Tensor, " K"]
) -> LinearProbe:
    """The reference probe: L2 logistic regression on activations standardised by these rows, in raw units."""
    standardisation = standardise(features)
    fit = solve(standardisation.apply(features), labels, penalty)
    return LinearProbe(*standardisation.raw(fit.coefficients, fit.intercepts))


def mass_mean(features: Float[Tensor, "n d"], labels: Bool[Tensor, "n K"]) -> LinearProbe:
    """Difference of the class means, boundary half way (Marks and Tegmark 2023, arXiv 2310.06824, section 5)."""
    difference, middle = _class_means(features, labels)
    return LinearProbe(difference, -(difference * middle).sum(0))


# Share of the mean variance that is added to the covariance: with fewer texts than dimensions there is no inverse
# without it; large enough for float64, too small to matter where texts are enough.
LDA_RIDGE = 1e-4


def lda(features: Float[Tensor, "n d"], labels: Bool[Tensor, "n K"]) -> LinearProbe:
    """Σ⁻¹(μ₊ − μ₋), boundary half way: Fisher's discriminant, Σ the pooled within-class covariance plus a small ridge.

    With T the total covariance and Δ the difference of the means of a column, Σ = T − p(1 − p) ΔΔᵀ, so that all columns
    share one factorisation of T: Σ⁻¹Δ = T⁻¹Δ / (1 − p(1 − p) ΔᵀT⁻¹Δ) (Sherman and Morrison 1950).
    """
    x = features.double()
    centred = x - x.mean(0)
    total = centred.T @ centred / len(x)
    ridge = LDA_RIDGE * total.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    factor = torch.linalg.cholesky(total + ridge * torch.eye(len(total), dtype=x.dtype, device=x.device))
    difference, middle = _class_means(features, labels)
    solved = torch.cholesky_solve(difference, factor)
    share = labels.double().mean(0)
    between = share * (1 - share) * (difference * solved).sum(0)
    directions = solved / (1 - between).clamp(min=torch.finfo(torch.float64).eps)
    return LinearProbe(directions, -(directions * middle).sum(0))


def score_texts(
    probe: LinearProbe, features: Float[Tensor, "n d"], labels: Bool[Tensor, "n K"]
) -> TextScores:
    """Score texts, float64. A logit within TIE of 0 counts as half right: at the optimum of an additive representation
    the weights of an XOR are 0 up to rounding, and the sign of rounding is no answer."""
    decision = features.double() @ probe.directions + probe.intercepts
    signed = torch.where(labels, decision, -decision)
    correct = torch.where(decision.abs() < TIE, 0.5, (signed > 0).double())
    bits = 1 - torch.nn.functional.softplus(-signed) / math.log(2)
    length = probe.directions.norm(dim=0)
    margin = torch.where(length > 0, signed / length.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return TextScores(decision, correct, bits, margin)


def _class_means(
    features: Float[Tensor, "n d"], labels: Bool[Tensor, "n K"]
) -> tuple[Float[Tensor, "d K"], Float[Tensor, "d K"]]:
    """μ₊ − μ₋ and (μ₊ + μ₋)/2 of every column, float64."""
    x, y = features.double(), labels.double()
    positive = x.T @ y / y.sum(0)
    negative = x.T @ (1 - y) / (1 - y).sum(0)
    return positive - negative, (positive + negative) / 2
