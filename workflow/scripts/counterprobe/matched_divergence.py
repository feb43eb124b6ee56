"""Two ways of steering at equal price: doses at which they disturb what is said elsewhere by the same divergence.

The divergence grows with the coefficient, from a square at first to a jump where the model says something else: bisection
over log c, all moves at once. A move that disturbs by less at `LARGEST`, or whose divergence jumps over what is wanted so
that no coefficient comes within a factor of `CLOSE` of it, has none (NaN).

The mean of one way less the mean of several draws of the other, over texts, has two sources of scatter, texts and draws:
`difference` resamples both (Owen 2007, doi:10.1214/07-AOAS122, on bootstrapping two-way arrays).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from counterprobe import statistics
from counterprobe.statistics import Interval

ROUNDS, CLOSE = 12, 1.25
SMALLEST, LARGEST = 0.01, 32.0


def doses_at(
    divergence: Callable[[Float[np.ndarray, " k"]], Float[np.ndarray, " k"]], wanted: float, k: int
) -> Float[np.ndarray, " k"]:
    """The coefficient of each of k moves at which its divergence is `wanted`; NaN where none was found."""
    reached = divergence(np.full(k, LARGEST)) >= wanted
    best, nearest = np.full(k, np.nan), np.full(k, np.log(CLOSE))
    low, high = np.full(k, np.log(SMALLEST)), np.full(k, np.log(LARGEST))
    for _ in range(ROUNDS if reached.any() else 0):
        middle = (low + high) / 2
        found = divergence(np.exp(middle))
        off = np.abs(np.log(np.maximum(found, np.finfo(float).tiny)) - np.log(wanted))
        closer = reached & (off < nearest)
        best, nearest = np.where(closer, np.exp(middle), best), np.where(closer, off, nearest)
        low, high = np.where(found < wanted, middle, low), np.where(found < wanted, high, middle)
    return best


def difference(
    one: Float[np.ndarray, " m"],
    draws: Float[np.ndarray, "k m"],
    weights: Float[np.ndarray, "R m"],
    confidence: float,
    units: int,
    rng: np.random.Generator,
) -> Interval:
    """Mean over texts and draws of one − draw, with its interval; `weights` and `units` of the texts as in `statistics`."""
    k = len(draws)
    drawn = rng.multinomial(k, np.full(k, 1 / k), size=len(weights)).astype(np.float32)
    both = (weights[:, :, None] * drawn[:, None, :]).reshape(len(weights), -1)
    return statistics.bootstrap((one[:, None] - draws.T).reshape(-1, 1), both, confidence, min(units, k))
