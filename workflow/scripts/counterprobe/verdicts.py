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
    not used at this site      the whole interval of the effect inside 0 ± margin (equivalence), above its nulls or not
    inconclusive               none of these

*Legs.* Each condition has a one-sided p-value. An interval [l, u] of an estimate m over g units gives
p = 1 − F((m − level) / s), s = (m − l) / t(g − 1), F Student's t with g − 1 degrees of freedom: the studentised
interval turned into a test, since no affordable number of resamples reaches the p-values that Holm's correction asks
for. It is never below 2^(1 − g), the least that g units can show. A conjunction has the largest p-value of its legs
(Berger 1982, https://doi.org/10.1080/00401706.1982.10487790), and is corrected over targets and models by Holm's rule.

decodable     Two p-values, the larger counts. (1) Of the held-out accuracy, s² doubled: where nothing is there, a unit i
              that helps to test j by chance is helped by j as much, so a cross-validated sum counts every pair of units
              twice, and an interval over units, which takes them for independent, has half the variance (a degenerate
              U-statistic; no unbiased estimate exists, Bengio and Grandvalet 2004, JMLR 5). (2) Of the contrast itself,
              by sign flips of whole carriers, exact: an accuracy is above one half too where the texts of one cell are
              noisier than those of another, and no XOR of the means is there.
selective     Two p-values again. (1) Of the paired difference from the mean dichotomy, s² doubled: is it there at all.
              (2) Of the target as one more labelling: a network that mixes its inputs at random has some labellings that
              are read better than others, and with enough texts each differs from their mean. N dichotomies span r
              parities, so r of them are independent and their mean has the variance σ²/r, whatever N:
              p = 1 − F((target − mean) / (σ √(1 + 1/r))), r − 1 degrees of freedom, σ² = s² (1 − 1/N) / (1 − 1/r).
rungs         k seeds; one more seed: p = 1 − F((trained − mean) / (s √(1 + 1/k))) with k − 1 degrees of freedom, the
              95% prediction bound of `statistics.prediction_bound` turned around.

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
# Variance of a cross-validated mean where nothing is there, over what an interval over its units shows.
COUNTED_TWICE = 2.0
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

    def p_above(self, level: float, variance_factor: float = 1.0) -> float:
        """One-sided p-value of "not above level"; 1 where there is no interval. The factor multiplies s²."""
        if not np.isfinite([self.estimate, self.lower]).all() or self.units < 2:
            return 1.0
        least = 2.0 ** (1 - self.units)
        if self.estimate <= level:
            return max(least, 0.5)
        spread = (self.estimate - self.lower) / special.stdtrit(self.units - 1, (1 + self.confidence) / 2)
        spread *= np.sqrt(variance_factor)
        # Intervals come rounded to six digits; below that a spread is none.
        if spread <= 1e-9:
            return least
        return max(least, float(special.stdtr(self.units - 1, (level - self.estimate) / spread)))

    def inside(self, level: float, margin: float) -> bool:
        """Whether the whole interval lies inside level ± margin."""
        return bool(statistics.equivalence(np.array([self.lower]), np.array([self.upper]), margin, level)[0])


@dataclass(frozen=True)
class Dichotomies:
    """A target's accuracy and those of the dichotomies it is held against, by mean, standard deviation (N − 1), N and rank."""

    target: float
    mean: float
    spread: float
    count: int
    rank: int


@dataclass(frozen=True)
class ReadEvidence:
    """What was measured of one target at one site.

    accuracy: held out, under the protocol the verdict rests on. selectivity: accuracy − dichotomies, paired; None where
    the design has too few factors for dichotomies. dichotomies: their own accuracies, at the target's folds and penalty,
    and the rank of the parities they span; None where not measured. contrast_p: of the target's Walsh contrast, by sign
    flips of the units that the protocol holds out; None where the layout does not determine it. trained and rungs: one
    score, comparable with each other (accuracy, or bits where a rung is nearly perfect), for the trained model and for
    each seed of each rung. beyond_tokens: bits that activations add to the tokens; None where not measured. testable:
    some factor of the target is held out.
    """

    accuracy: Measured
    selectivity: Measured | None
    trained: float
    rungs: Mapping[str, Float[np.ndarray, " k"]]
    beyond_tokens: Measured | None
    testable: bool
    margin: float
    dichotomies: Dichotomies | None = None
    contrast_p: float | None = None


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


def singled_out_p(labellings: Dichotomies) -> float:
    """p-value of "the target is one more random labelling" against "it is read better"; 1 below rank two."""
    count, rank = labellings.count, min(labellings.rank, labellings.count)
    if rank < 2 or not np.isfinite([labellings.target, labellings.mean, labellings.spread]).all():
        return 1.0
    spread = labellings.spread * np.sqrt((1 - 1 / count) / (1 - 1 / rank) * (1 + 1 / rank))
    if spread == 0:
        return 0.0 if labellings.target > labellings.mean else 1.0
    return float(special.stdtr(rank - 1, (labellings.mean - labellings.target) / spread))


def read_legs(evidence: ReadEvidence) -> ReadLegs:
    """Every condition of `learned`, one p-value each."""
    decodable = evidence.accuracy.p_above(0.5, COUNTED_TWICE)
    if evidence.contrast_p is not None:
        decodable = max(decodable, evidence.contrast_p)
    selective = [] if evidence.selectivity is None else [evidence.selectivity.p_above(0.0, COUNTED_TWICE)]
    selective += [] if evidence.dichotomies is None else [singled_out_p(evidence.dichotomies)]
    return ReadLegs(
        decodable=decodable,
        selective=max(selective, default=None),
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
    # First: with small enough nulls an effect of no consequence exceeds them.
    if evidence.effect.inside(0.0, evidence.margin):
        return Verdict(NOT_USED, p)
    if p <= ALPHA:
        return Verdict(USED if evidence.predicted else USED_UNPREDICTED, p)
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
