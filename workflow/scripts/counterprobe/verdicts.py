"""Two answers for every target, model and site: can it be READ there as a feature of the model, and is it USED there.

READ, from probes that hold out items and carriers (`probe_grid`), their label controls (`probe_controls`) and the
ladder of randomised weights:

    not testable   no factor of the target can be held out, so a probe may have read a token's identity
    absent         the whole interval of the accuracy lies inside 0.5 ± margin
    decodable      accuracy above 0.5
    learned        decodable, AND more accurate than balanced random labellings (selective), AND above every rung, AND
                   more informative than the tokens alone where that was measured
    inconclusive   none of these

USE, from swapping the coordinate to its counterfactual (`causal_use`):

    used                       the signed effect on the target's own read-out exceeds the 95% quantile of the absolute
                               effects of equally long within-cell and dichotomy directions
    used, no predicted effect  the target has no read-out; the next-token distribution moves further (KL) than under these
    not used at this site      the whole interval of the effect inside 0 ± margin (equivalence)
    inconclusive               none of these

*Legs.* Each condition has a one-sided p-value. An interval [l, u] of an estimate m over g units gives
p = 1 − F((m − level) / s), s = (m − l) / t(g − 1), F Student's t with g − 1 degrees of freedom: the studentised
interval turned into a test, since no affordable number of resamples reaches the p-values that Holm's correction asks
for. It is never below 2^(1 − g), the least that g units can show. A rung with k seeds is one more draw away:
p = 1 − F((trained − mean) / (s √(1 + 1/k))) with k − 1 degrees of freedom, the 95% prediction bound of
`statistics.prediction_bound` turned around. A conjunction has the largest p-value of its legs (Berger 1982,
https://doi.org/10.1080/00401706.1982.10487790), and is corrected over targets and models by Holm's rule.

Pitfalls: "above every rung" is only as strong as the ladder, and a rung whose activations have collapsed is no rung.
A target that is closed under XOR with two others (match, negated, truth) is an arbitrary XOR in none of its readings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from scipy import special

from counterprobe import statistics

NOT_TESTABLE, ABSENT, DECODABLE, LEARNED = "not testable", "absent", "decodable", "learned"
USED, USED_UNPREDICTED, NOT_USED = "used", "used, no predicted effect", "not used at this site"
INCONCLUSIVE = "inconclusive"
READS = (NOT_TESTABLE, ABSENT, DECODABLE, LEARNED, INCONCLUSIVE)
USES = (USED, USED_UNPREDICTED, NOT_USED, INCONCLUSIVE)
ALPHA = 0.05
TOKENS = "tokens"
DICHOTOMIES = "dichotomies"


@dataclass(frozen=True)
class Measured:
    """A number with its interval at `confidence` over `units` independent units."""

    estimate: float
    lower: float
    upper: float
    units: int
    confidence: float = 0.95

    def p_above(self, level: float) -> float:
        """One-sided p-value of "not above level"; 1 where there is no interval."""
        if not np.isfinite([self.estimate, self.lower]).all() or self.units < 2:
            return 1.0
        least = 2.0 ** (1 - self.units)
        if self.estimate <= level:
            return max(least, 0.5)
        spread = (self.estimate - self.lower) / special.stdtrit(self.units - 1, (1 + self.confidence) / 2)
        if spread <= 0:
            return least
        return max(least, float(special.stdtr(self.units - 1, (level - self.estimate) / spread)))

    def inside(self, level: float, margin: float) -> bool:
        """Whether the whole interval lies inside level ± margin."""
        return bool(statistics.equivalence(np.array(self.lower), np.array(self.upper), margin, level))


@dataclass(frozen=True)
class ReadEvidence:
    """What was measured of one target at one site.

    accuracy: held out, under the protocol the verdict rests on. selectivity: accuracy − dichotomies, paired; None where
    the design has too few factors for dichotomies. trained and rungs: one score, comparable with each other (accuracy, or
    bits where a rung is nearly perfect), for the trained model and for each seed of each rung. beyond_tokens: bits that
    activations add to the tokens; None where not measured. testable: some factor of the target is held out.
    """

    accuracy: Measured
    selectivity: Measured | None
    trained: float
    rungs: Mapping[str, Float[np.ndarray, " k"]]
    beyond_tokens: Measured | None
    testable: bool
    margin: float


@dataclass(frozen=True)
class ReadLegs:
    """p-values of the conditions; `rungs` by name."""

    decodable: float
    selective: float | None
    rungs: Mapping[str, float]
    beyond_tokens: float | None

    @property
    def learned(self) -> float:
        """The conjunction's p-value."""
        legs = [self.decodable, self.selective, *self.rungs.values(), self.beyond_tokens]
        return max(leg for leg in legs if leg is not None)


@dataclass(frozen=True)
class Verdict:
    """A verdict, its p-value after correction, and what explains the target where it is not the model's own."""

    verdict: str
    p: float
    explained_by: tuple[str, ...] = field(default=())


def rung_p(trained: float, seeds: Float[np.ndarray, " k"]) -> float:
    """p-value of "the trained model is one more draw of this rung" against "it lies above"; 1 below two seeds."""
    seeds = np.asarray(seeds, dtype=np.float64)
    k = len(seeds)
    if k < 2 or not np.isfinite([trained, *seeds]).all():
        return 1.0
    spread = np.std(seeds, ddof=1) * np.sqrt(1 + 1 / k)
    if spread == 0:
        return 0.0 if trained > seeds[0] else 1.0
    return float(special.stdtr(k - 1, (seeds.mean() - trained) / spread))


def read_legs(evidence: ReadEvidence) -> ReadLegs:
    """Every condition of `learned`, one p-value each."""
    return ReadLegs(
        decodable=evidence.accuracy.p_above(0.5),
        selective=None if evidence.selectivity is None else evidence.selectivity.p_above(0.0),
        rungs={rung: rung_p(evidence.trained, seeds) for rung, seeds in evidence.rungs.items()},
        beyond_tokens=None if evidence.beyond_tokens is None else evidence.beyond_tokens.p_above(0.0),
    )


def read(
    evidence: ReadEvidence, legs: ReadLegs, *, decodable: float | None = None, learned: float | None = None
) -> Verdict:
    """READ of one target. `decodable` and `learned` are the two p-values after correction; the legs' own if not given.

    explained_by names what reaches the same without the training: the rungs that are not exceeded, the strongest first,
    then tokens and dichotomies.
    """
    decodable = legs.decodable if decodable is None else decodable
    learned = legs.learned if learned is None else learned
    if not evidence.testable:
        return Verdict(NOT_TESTABLE, decodable, (TOKENS,))
    if decodable <= ALPHA:
        if learned <= ALPHA:
            return Verdict(LEARNED, learned)
        rungs = sorted(
            (rung for rung, p in legs.rungs.items() if p > ALPHA), key=lambda rung: -np.mean(evidence.rungs[rung])
        )
        others = [
            name
            for name, p in ((TOKENS, legs.beyond_tokens), (DICHOTOMIES, legs.selective))
            if p is not None and p > ALPHA
        ]
        return Verdict(DECODABLE, decodable, (*rungs, *others))
    if evidence.accuracy.inside(0.5, evidence.margin):
        return Verdict(ABSENT, decodable)
    return Verdict(INCONCLUSIVE, decodable)


@dataclass(frozen=True)
class UseEvidence:
    """What swapping one target did at one site.

    effect: signed, as a share of the read-out's own gap between True and False; without a read-out, the KL divergence in
    bits. nulls: the same of single directions of equal length, absolute, by the kind of direction. predicted: whether
    the target has a read-out that the model answers.
    """

    effect: Measured
    nulls: Mapping[str, Float[np.ndarray, " k"]]
    predicted: bool
    margin: float


def use_p(evidence: UseEvidence) -> float:
    """p-value of "the effect does not exceed the 95% quantile of the nulls", the worst of them; 1 without nulls."""
    bounds = [null_bound(effects) for effects in evidence.nulls.values()]
    return evidence.effect.p_above(max(bounds)) if bounds else 1.0


def null_bound(effects: Float[np.ndarray, " k"]) -> float:
    """95% quantile of |effects|, (k + 1)·0.95-th in order: one more draw exceeds it once in twenty. inf below 19."""
    effects = np.sort(np.abs(np.asarray(effects, dtype=np.float64)))
    place = int(np.ceil((len(effects) + 1) * 0.95)) - 1
    return float(effects[place]) if place < len(effects) else float("inf")


def use(evidence: UseEvidence, p: float | None = None) -> Verdict:
    """USE of one target; `p` after correction, its own if not given."""
    p = use_p(evidence) if p is None else p
    if p <= ALPHA:
        return Verdict(USED if evidence.predicted else USED_UNPREDICTED, p)
    if evidence.effect.inside(0.0, evidence.margin):
        return Verdict(NOT_USED, p)
    return Verdict(INCONCLUSIVE, p)


def holm(p: Sequence[float]) -> Float[np.ndarray, " m"]:
    """Holm's correction over one family of verdicts."""
    return statistics.holm(np.asarray(p, dtype=np.float64))


def of_the_model(read_verdict: str, use_verdict: str) -> str:
    """The one sentence that READ and USE make together."""
    if read_verdict == LEARNED and use_verdict == USED:
        return "model feature: learned and used"
    if use_verdict == USED:
        return "used; the probe does not show it was learned"
    if read_verdict == LEARNED:
        return "learned; not shown to be used here"
    if read_verdict == ABSENT and use_verdict == NOT_USED:
        return "neither there nor used"
    return "not a feature of the model by these tests"
