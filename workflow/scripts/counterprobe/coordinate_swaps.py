"""Swap a target's coordinate to its counterfactual, and move as far along directions that mean something else.

With s = ±1 the target's label of a text, v = μ₁ − μ₀ its Walsh effect in a balanced design, and f a read-out of the
residual vector x, the signed effect of a text is

    e = s (f(x + s v) − f(x − s v)) / (2 gap),    gap = mean f | True − mean f | False:

the change that the swap x − s v makes, averaged with that of its opposite, as a share of the read-out's gap: 1 where all
that the read-out knows of the target stands in this coordinate, 0 where nothing does. Nulls are directions of equal length
with the effects of named parities projected out, measured in the same way:

    within-cell   R'z / ‖R'z‖, R the deviations of texts from the mean of their cell, z standard normal: draws from the
                  WITHIN-cell covariance. The total covariance contains the feature itself.
    dichotomies   effects of random balanced labellings (`label_controls`)
    isotropic and total-covariance draws stand beside: the first leave the space that activations fill, the second contain
    the feature, so neither decides

Directions come from one part of the texts and are tried on another.

Pitfall: the effect of a text on which v was fitted shares the text's own noise, and is positive for any read-out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from counterprobe import designs, statistics
from counterprobe.designs import Design
from counterprobe.verdicts import Measured, UseEvidence

WITHIN_CELL, DICHOTOMIES = "within-cell", "dichotomies"
ISOTROPIC, TOTAL = "isotropic", "total"
# What the moves of a target are called in tables.
WALSH, OWN = "walsh", "walsh_orthogonal"
# What a read-out says of texts with these residual vectors: (vectors [n, d], numbers of the texts [n]) -> [n].
ReadOut = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Directions:
    """The target's effect, its part outside the span of the other parities' effects; nulls, and draws that stand beside
    them, as long as the effect."""

    effect: Float[np.ndarray, " d"]
    own: Float[np.ndarray, " d"]
    nulls: Mapping[str, Float[np.ndarray, "k d"]]
    beside: Mapping[str, Float[np.ndarray, "b d"]]


def directions(
    x: Float[np.ndarray, "n d"],
    design: Design,
    rows: Int[np.ndarray, " r"],
    target: str,
    dichotomies: Bool[np.ndarray, "n k"],
    n_nulls: int,
    rng: np.random.Generator,
    n_beside: int = 0,
) -> Directions:
    """Fitted on `rows`, whose cells must be filled alike. Nulls avoid the effects of factors and of needed parities."""
    here = np.asarray(x[rows], dtype=np.float64)
    centred = here - here.mean(axis=0)
    target = designs.canonical(design, target)
    effects = {name: _effect(centred, labels[rows]) for name, labels in designs.targets(design).items()}
    named = [name for name in effects if name != target and (name in design.factors or name in design.needed)]
    length = np.linalg.norm(effects[target])

    def as_long(draws: np.ndarray) -> np.ndarray:
        return draws * (length / np.maximum(np.linalg.norm(draws, axis=1, keepdims=True), np.finfo(float).tiny))

    def null(draws: np.ndarray) -> np.ndarray:
        return as_long(_without(draws, np.stack([effects[name] for name in named])))

    cells = designs.cells(design)[rows]
    means = np.zeros((2 ** len(design.factors), here.shape[1]))
    np.add.at(means, cells, here)
    deviations = here - (means / np.bincount(cells, minlength=len(means))[:, None])[cells]
    nulls = {WITHIN_CELL: null(rng.standard_normal((n_nulls, len(here))) @ deviations)}
    if dichotomies.shape[1]:
        chosen = rng.permutation(dichotomies.shape[1])[:n_nulls]
        nulls[DICHOTOMIES] = null(np.stack([_effect(centred, dichotomies[rows, k]) for k in chosen]))
    others = np.stack([effect for name, effect in effects.items() if name != target])
    beside = {
        ISOTROPIC: as_long(rng.standard_normal((n_beside, here.shape[1]))),
        TOTAL: as_long(rng.standard_normal((n_beside, len(here))) @ centred),
    }
    return Directions(effects[target], _without(effects[target][None], others)[0], nulls, beside)


def signed_effects(
    readout: ReadOut,
    x: Float[np.ndarray, "n d"],
    labels: Bool[np.ndarray, " n"],
    rows: Int[np.ndarray, " r"],
    moves: Float[np.ndarray, "k d"],
) -> Float[np.ndarray, "r k"]:
    """e of every text in `rows` for every direction, ± averaged, as a share of the read-out's gap on these texts."""
    sign = np.where(labels[rows], 1.0, -1.0)
    plain = readout(x[rows], rows)
    gap = plain[sign > 0].mean() - plain[sign < 0].mean()
    out = np.empty((len(rows), len(moves)))
    for column, move in enumerate(moves):
        step = sign[:, None] * move
        out[:, column] = sign * (readout(x[rows] + step, rows) - readout(x[rows] - step, rows)) / (2 * gap)
    return out


def evidence(
    readout: ReadOut,
    x: Float[np.ndarray, "n d"],
    design: Design,
    target: str,
    fitted: Directions,
    rows: Int[np.ndarray, " r"],
    weights: Float[np.ndarray, "R r"],
    *,
    units: int,
    confidence: float,
    margin: float,
) -> UseEvidence:
    """What the swap did on `rows`, beside what nulls did; `weights` are bootstrap weights of these rows."""
    labels = designs.parity(design, target)
    effect = signed_effects(readout, x, labels, rows, fitted.effect[None])
    interval = statistics.bootstrap(effect, weights, confidence, units)
    ends = (float(end[0]) for end in (interval.estimate, interval.lower, interval.upper))
    return UseEvidence(
        effect=Measured(*ends, units, confidence),
        nulls={
            kind: signed_effects(readout, x, labels, rows, moves).mean(axis=0) for kind, moves in fitted.nulls.items()
        },
        predicted=True,
        margin=margin,
    )


def _effect(x: Float[np.ndarray, "r d"], labels: Bool[np.ndarray, " r"]) -> Float[np.ndarray, " d"]:
    return x[labels].mean(axis=0) - x[~labels].mean(axis=0)


def _without(vectors: Float[np.ndarray, "k d"], span: Sequence | np.ndarray) -> Float[np.ndarray, "k d"]:
    """Vectors less their part in a span."""
    basis = np.linalg.qr(np.asarray(span).T)[0]
    return vectors - (vectors @ basis) @ basis.T
