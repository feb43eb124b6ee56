"""Whether a rung of the ladder still processes its input: its activations beside the trained model's.

A control whose activations have collapsed is no control: that a probe fails on it says nothing of the trained model.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from counterprobe import tables
from counterprobe.activations import Store
from counterprobe.revisions import step_of


def compare(trained: Store, control: Store, cell: Mapping[str, str]) -> pd.DataFrame:
    """Residual norm, block-to-residual ratio and participation ratio of every unit of a rung, beside the trained model's.

    `cell` names model, revision, weights and design. Score `collapsed` is 1 where the rung is not a control.
    """
    rows = []
    for position, bos in ((position, bos) for position in control.positions for bos in control.bos):
        reference = activation_statistics(trained.matrix(position, bos, layer) for layer in trained.layers)
        for embeddings, seed in control.units:
            statistics = activation_statistics(
                control.matrix(position, bos, layer, embeddings, seed) for layer in control.layers
            )
            compared = health(reference, statistics)
            for score in [column for column in compared if column != "layer"]:
                rows += [
                    {
                        **tables.NOT_APPLICABLE,
                        **cell,
                        "step": step_of(cell["revision"]),
                        "embeddings": embeddings,
                        "seed": seed,
                        "position": position,
                        "bos": bos,
                        "layer": int(row.layer),
                        "score": score,
                        "estimate": float(getattr(row, score)),
                        "n_texts": control.n_texts,
                        "n_groups": 1,
                    }
                    for row in compared.itertuples()
                ]
    return tables.frame(rows)


@dataclass(frozen=True)
class ActivationStatistics:
    """What a rung's activations look like, a layer at a time; layer 0 is the embedding output."""

    # Means over texts of ‖x_l‖ and of ‖x_l − x_{l−1}‖ / ‖x_{l−1}‖ (NaN at layer 0), and (Σλ)² / Σλ², λ being
    # the eigenvalues of the texts' covariance.
    residual_norm: Float[np.ndarray, " layers"]
    block_ratio: Float[np.ndarray, " layers"]
    participation_ratio: Float[np.ndarray, " layers"]


def activation_statistics(layers: Iterable[Float[np.ndarray, "texts d"]]) -> ActivationStatistics:
    """Statistics of the residual stream at one read position, layers 0..L in order, each [n_texts, d].

    The participation ratio counts the directions that texts vary along: 1 when all variation is on a line, 0
    when every text has the same activation (as at layer 0 at a token all texts share).
    """
    norms, ratios, participation = [], [], []
    previous = None
    for layer in layers:
        residual = np.asarray(layer, dtype=np.float64)
        length = np.linalg.norm(residual, axis=1)
        norms.append(length.mean())
        if previous is None:
            ratios.append(math.nan)
        else:
            written = np.linalg.norm(residual - previous, axis=1)
            ratios.append(np.mean(written / np.maximum(np.linalg.norm(previous, axis=1), np.finfo(float).tiny)))
        participation.append(_participation_ratio(residual))
        previous = residual
    return ActivationStatistics(np.array(norms), np.array(ratios), np.array(participation))


def _participation_ratio(residual: Float[np.ndarray, "texts d"]) -> float:
    centred = residual - residual.mean(axis=0)
    small_side = centred @ centred.T if len(residual) <= residual.shape[1] else centred.T @ centred
    total = np.trace(small_side)
    # Equal rows leave rounding noise behind, which would look like a cloud of full dimension.
    if not total > 1e-12 * np.square(residual).sum():
        return 0.0
    return float(total**2 / np.square(small_side).sum())


# A rung is there to show what an architecture and a spectrum give for nothing, so it must still process its
# input. One order of magnitude is far outside the spread between healthy rungs and trained models, and far
# inside what saturated attention or a vanishing residual branch produce.
COLLAPSE_FACTOR = 10.0


def health(trained: ActivationStatistics, control: ActivationStatistics) -> pd.DataFrame:
    """The health columns of one rung beside the trained model's, a row a layer, with the boolean `collapsed`.

    A layer is collapsed, and the rung not a control there, if any of these holds for COLLAPSE_FACTOR = 10: a
    statistic is not finite; texts vary along fewer than 1/10 of the directions (participation ratio) they
    vary along in the trained model; or the blocks up to there write, on average, less than 1/10 of the share
    r / (1 + r) that trained blocks write, r being `block_ratio`: the layer is nearly the embedding. A share
    and an average, because one block of a trained model may write many times the residual, which no control
    owes. Layers without variation in the trained model cannot be judged and are not collapsed. The residual
    norm is reported and not judged: every reader of the residual stream normalises it first, and probes
    standardise.
    """
    if len(trained.residual_norm) != len(control.residual_norm):
        raise ValueError(f"{len(trained.residual_norm)} trained layers but {len(control.residual_norm)} of the rung")
    columns = {"layer": np.arange(len(trained.residual_norm))}
    for name in ("residual_norm", "block_ratio", "participation_ratio"):
        columns[name] = getattr(control, name)
        columns[f"trained_{name}"] = getattr(trained, name)
    broken = ~np.isfinite(control.residual_norm) | ~np.isfinite(control.participation_ratio)
    flat = control.participation_ratio * COLLAPSE_FACTOR < trained.participation_ratio
    idle = np.full(len(flat), False)
    ratios = (control.block_ratio[1:], trained.block_ratio[1:])
    written, expected = (np.cumsum(ratio / (1 + ratio)) for ratio in ratios)
    idle[1:] = written * COLLAPSE_FACTOR < expected
    return pd.DataFrame({**columns, "collapsed": broken | flat | idle})
