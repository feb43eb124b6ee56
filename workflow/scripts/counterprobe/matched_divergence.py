"""Two ways of steering at equal price: doses at which they disturb what is said elsewhere by the same divergence.

The divergence of a small move grows with its square, so log D is near linear in log c with a slope of 2: a secant search
in logarithms, all moves at once. A dose whose divergence is not within a factor of `CLOSE` of what was wanted after
`ROUNDS` rounds, as where it saturates below it, is none (NaN).

The mean of one way less the mean of several draws of the other, over texts, has two sources of scatter, texts and draws:
`difference` resamples both (Owen 2007, doi:10.1214/07-AOAS122, on bootstrapping two-way arrays).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from counterprobe import statistics
from counterprobe.statistics import Interval

ROUNDS, CLOSE = 5, 1.25
SMALLEST, LARGEST = 1e-3, 32.0
SLOPES = (0.5, 4.0)


def doses_at(
    divergence: Callable[[Float[np.ndarray, " k"]], Float[np.ndarray, " k"]], wanted: float, k: int
) -> Float[np.ndarray, " k"]:
    """The coefficient of each of k moves at which its divergence is `wanted`; NaN where none was found."""
    dose, slope = np.ones(k), np.full(k, 2.0)
    best, nearest = np.full(k, np.nan), np.full(k, np.log(CLOSE))
    before = None
    for _ in range(ROUNDS):
        off = np.log(np.maximum(divergence(dose), np.finfo(float).tiny)) - np.log(wanted)
        closer = np.abs(off) < nearest
        best, nearest = np.where(closer, dose, best), np.where(closer, np.abs(off), nearest)
        if before is not None:
            step = np.log(dose) - before[0]
            with np.errstate(divide="ignore", invalid="ignore"):
                slope = np.where(step != 0, np.clip((off - before[1]) / step, *SLOPES), slope)
        before = np.log(dose), off
        dose = np.exp(np.clip(np.log(dose) - off / slope, np.log(SMALLEST), np.log(LARGEST)))
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
