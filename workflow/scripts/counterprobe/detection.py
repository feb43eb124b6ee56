"""Does a direction that detects a feature also steer it: rank correlation over directions × layers × revisions.

Detection is the AUROC of the direction on held-out texts, steering the share of the gap between True and False that one
exchange of the class means closes along it (`steering`). Spearman's correlation, with a percentile bootstrap over
directions: layers and revisions of one direction are no new evidence.

Pitfall: where every direction detects perfectly the correlation is that of ties, and says nothing (NaN).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from counterprobe import tables

RESAMPLES = 1000
FEWEST = 4


def correlations(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a model, design and target, of the last revision that was measured."""
    rows = []
    both = table[
        table.probe.str.endswith(":detect") & table.score.isin(["auroc", "effect"]) & (table.control == "none")
    ]
    for (model, design, target), found in both.groupby(["model", "design", "target"]):
        wide = found.pivot_table(index=["probe", "revision", "layer"], columns="score", values="estimate").dropna()
        if not {"auroc", "effect"} <= set(wide) or len(wide) < FEWEST:
            continue
        by_direction = [part[["auroc", "effect"]].to_numpy() for _, part in wide.groupby(level="probe")]
        rng = np.random.default_rng(0)
        draws = []
        for _ in range(RESAMPLES):
            drawn = np.concatenate([by_direction[i] for i in rng.integers(0, len(by_direction), len(by_direction))])
            draws.append(_rank_correlation(*drawn.T))
        lower, upper = np.nanpercentile(draws, [2.5, 97.5]) if np.isfinite(draws).any() else (math.nan, math.nan)
        last = found[found.step == found.step.max()].iloc[0]
        rows.append(
            {
                **tables.NOT_APPLICABLE,
                "model": model,
                "revision": last.revision,
                "step": int(last.step),
                "weights": last.weights,
                "design": design,
                "bos": bool(last.bos),
                "target": target,
                "protocol": last.protocol,
                "score": "spearman",
                "level": 0.0,
                "estimate": _rank_correlation(wide.auroc.to_numpy(), wide.effect.to_numpy()),
                "lower": float(lower),
                "upper": float(upper),
                "n_texts": int(last.n_texts),
                "n_groups": len(by_direction),
                "note": f"detection (auroc) against steering (effect) over {len(wide)} directions, layers and revisions",
            }
        )
    return rows


def gather(paths: Sequence[str | Path]) -> pd.DataFrame:
    """The parts together, with the correlations over all of them."""
    table = tables.gather(paths)
    return tables.frame(pd.concat([table, tables.frame(correlations(table))], ignore_index=True))


def ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """From 1; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def auroc(scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> float:
    """Area under the ROC curve, ties as 1/2: the Mann–Whitney statistic over the number of pairs."""
    order, positive = ranks(scores), labels.sum()
    return float((order[labels].sum() - positive * (positive + 1) / 2) / (positive * (len(labels) - positive)))


def _rank_correlation(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Spearman's, NaN where one of the two does not vary."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])
