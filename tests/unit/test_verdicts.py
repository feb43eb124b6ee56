"""READ, USE and their legs, against tests that are exact where they are, and by simulation where they are not."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from counterprobe import verdicts
from counterprobe.verdicts import Dichotomies, Measured, ReadEvidence, UseEvidence

FLOAT = st.floats(-10, 10, allow_nan=False)


def t_measured(sample, confidence=0.95):
    half = stats.t.ppf((1 + confidence) / 2, len(sample) - 1) * stats.sem(sample)
    return Measured(sample.mean(), sample.mean() - half, sample.mean() + half, len(sample), confidence)


def above(estimate, width=0.01, units=16):
    return Measured(estimate, estimate - width, estimate + width, units)


def evidence(**changes):
    made = {
        "accuracy": above(0.9),
        "selectivity": above(0.3),
        "trained": 0.9,
        "rungs": {"init": np.array([0.5, 0.51, 0.49])},
        "beyond_tokens": above(0.2),
        "testable": True,
        "margin": 0.1,
        "dichotomies": Dichotomies(target=0.9, mean=0.6, spread=0.02, count=40, rank=9),
        "contrast_p": 0.001,
    }
    return ReadEvidence(**(made | changes))


def read(**changes):
    found = evidence(**changes)
    return verdicts.read(found, verdicts.read_legs(found))


class TestMeasured:
    @pytest.mark.parametrize("confidence", [0.8, 0.95])
    def test_an_interval_of_students_t_gives_the_t_tests_p(self, confidence):
        rng = np.random.default_rng(0)
        for n, level in itertools.product((12, 60), (-0.2, 0.0)):
            sample = rng.standard_normal(n) + 0.3
            expected = stats.ttest_1samp(sample, level, alternative="greater").pvalue
            assert t_measured(sample, confidence).p_above(level) == pytest.approx(expected, rel=1e-9)

    def test_twice_the_variance_is_a_t_test_with_a_larger_error(self):
        sample = np.random.default_rng(1).standard_normal(30) + 0.4
        expected = stats.t.sf(sample.mean() / stats.sem(sample) / 2**0.5, 29)
        assert t_measured(sample).p_above(0.0, 2.0) == pytest.approx(expected, rel=1e-9)

    @given(FLOAT, st.floats(0, 5), st.integers(2, 60), FLOAT)
    def test_p_lies_between_what_its_units_can_show_and_one(self, estimate, width, units, level):
        p = above(estimate, width, units).p_above(level)
        assert 2.0 ** (1 - units) <= p <= 1
        assert (p < 0.5) or estimate <= level or units == 2

    @given(FLOAT, st.floats(0.01, 5), st.integers(3, 60), FLOAT, st.floats(0, 3))
    def test_p_falls_with_the_estimate(self, estimate, width, units, level, more):
        assert above(estimate + more, width, units).p_above(level) <= above(estimate, width, units).p_above(level)

    def test_no_interval_shows_nothing(self):
        nan = float("nan")
        assert Measured(0.9, nan, nan, 16).p_above(0.5) == 1
        assert Measured(0.9, 0.8, 1.0, 1).p_above(0.5) == 1
        assert not Measured(0.5, nan, nan, 16).inside(0.5, 0.1)

    def test_inside_is_strict_at_both_ends(self):
        assert Measured(0.5, 0.41, 0.59, 16).inside(0.5, 0.1)
        assert not Measured(0.5, 0.41, 0.6, 16).inside(0.5, 0.1)
        assert not Measured(0.5, 0.4, 0.55, 16).inside(0.5, 0.1)


class TestOneMoreDraw:
    @pytest.mark.parametrize("k", [2, 3, 10])
    def test_one_more_seed_of_a_rung_is_uniform(self, k):
        draws = np.random.default_rng(k).standard_normal((4000, k + 1))
        p = [verdicts.rung_p(draw[0], draw[1:]) for draw in draws]
        assert stats.kstest(p, "uniform").pvalue > 1e-3

    def test_a_rung_turns_the_prediction_bound_around(self):
        seeds = np.random.default_rng(0).standard_normal(5)
        bound = verdicts.statistics.prediction_bound(seeds, 0.95)
        assert verdicts.rung_p(float(bound), seeds) == pytest.approx(0.05)

    def test_rungs_that_show_no_spread(self):
        assert verdicts.rung_p(0.6, np.array([0.5])) == 1
        assert verdicts.rung_p(0.6, np.array([0.5, 0.5])) == 0
        assert verdicts.rung_p(0.5, np.array([0.5, 0.5])) == 1
        assert verdicts.rung_p(0.6, np.array([0.5, np.nan])) == 1

    def test_one_more_labelling_of_as_many_parities_as_they_span(self):
        # A labelling is a unit vector over the parities that it mixes, and is read as well as |Σ c β|².
        rng = np.random.default_rng(3)
        rank, d, count, p = 9, 64, 45, []
        for _ in range(3000):
            mixes = rng.standard_normal((count, rank))
            mixes /= np.linalg.norm(mixes, axis=1, keepdims=True)
            read_well = ((mixes @ rng.standard_normal((rank, d))) ** 2).sum(axis=1)
            target = (rng.standard_normal(d) ** 2).sum()
            p.append(verdicts.singled_out_p(Dichotomies(target, read_well.mean(), read_well.std(ddof=1), count, rank)))
        rejected = (np.array(p) < 0.05).mean()
        assert 0.035 < rejected < 0.064

    def test_independent_labellings_are_a_prediction_bound(self):
        seeds = np.random.default_rng(0).standard_normal(7)
        labellings = Dichotomies(1.3, seeds.mean(), seeds.std(ddof=1), 7, 7)
        assert verdicts.singled_out_p(labellings) == pytest.approx(verdicts.rung_p(1.3, seeds))

    def test_too_few_labellings_single_nothing_out(self):
        assert verdicts.singled_out_p(Dichotomies(0.9, 0.5, 0.01, 1, 1)) == 1
        assert verdicts.singled_out_p(Dichotomies(0.9, 0.5, float("nan"), 40, 9)) == 1


class TestNullBound:
    @given(st.integers(19, 120), st.integers(0, 2**32 - 1))
    def test_at_most_one_in_twenty_of_exchangeable_effects_exceeds_the_others(self, k, seed):
        effects = np.random.default_rng(seed).standard_normal(k + 1)
        exceeds = [abs(effects[i]) > verdicts.null_bound(np.delete(effects, i)) for i in range(k + 1)]
        # Leaving each out in turn is exactly what exchangeability means.
        assert np.mean(exceeds) <= 0.05 + 1e-12

    def test_thirty_nine_are_beaten_by_one_in_twenty_exactly(self):
        effects = np.arange(1.0, 41)
        exceeds = [e > verdicts.null_bound(np.delete(effects, i)) for i, e in enumerate(effects)]
        assert np.mean(exceeds) == 0.05

    def test_fewer_than_nineteen_bound_nothing(self):
        assert verdicts.null_bound(np.ones(18)) == np.inf
        assert verdicts.null_bound(-np.ones(19)) == 1

    @given(st.lists(FLOAT, min_size=19, max_size=60), st.permutations(range(19)))
    def test_neither_order_nor_sign_matters(self, effects, order):
        values = np.array(effects)
        values[:19] = values[list(order)]
        assert verdicts.null_bound(-values) == verdicts.null_bound(np.array(effects))


class TestRead:
    def test_every_leg_together_is_learned(self):
        assert read().verdict == verdicts.LEARNED

    @pytest.mark.parametrize(
        ("broken", "verdict", "explained_by"),
        [
            ({"testable": False}, verdicts.NOT_TESTABLE, ("tokens",)),
            ({"rungs": {"init": np.array([0.9, 0.91, 0.89])}}, verdicts.DECODABLE, ("init",)),
            ({"selectivity": above(0.0)}, verdicts.DECODABLE, ("dichotomies",)),
            ({"dichotomies": Dichotomies(0.9, 0.88, 0.02, 40, 9)}, verdicts.DECODABLE, ("dichotomies",)),
            ({"beyond_tokens": above(0.0)}, verdicts.DECODABLE, ("tokens",)),
            ({"contrast_p": 0.4}, verdicts.INCONCLUSIVE, ()),
            ({"accuracy": above(0.5, 0.05)}, verdicts.ABSENT, ()),
            ({"accuracy": above(0.55, 0.2)}, verdicts.INCONCLUSIVE, ()),
        ],
    )
    def test_what_one_broken_leg_leaves(self, broken, verdict, explained_by):
        found = read(**broken)
        assert (found.verdict, found.explained_by) == (verdict, explained_by)

    def test_the_strongest_rung_explains_first(self):
        rungs = {"init": np.array([0.88, 0.92]), "gaussian": np.array([0.95, 0.99]), "spectrum": np.array([0.5, 0.5])}
        assert read(rungs=rungs).explained_by == ("gaussian", "init")

    def test_what_was_not_measured_is_no_leg(self):
        legs = verdicts.read_legs(
            evidence(selectivity=None, beyond_tokens=None, rungs={}, dichotomies=None, contrast_p=None)
        )
        assert (legs.selective, legs.beyond_tokens, legs.rungs) == (None, None, {})
        assert legs.learned == legs.decodable

    @given(st.floats(0, 1), st.floats(0, 1))
    def test_learned_implies_decodable(self, decodable, learned):
        found = evidence()
        verdict = verdicts.read(found, verdicts.read_legs(found), decodable=decodable, learned=learned).verdict
        assert (verdict == verdicts.LEARNED) == (decodable <= 0.05 and learned <= 0.05)
        assert (verdict == verdicts.DECODABLE) == (decodable <= 0.05 < learned)

    @given(st.floats(0.3, 1), st.floats(0.001, 0.3), st.floats(-0.2, 0.5), st.floats(0.3, 1), st.floats(0.0001, 0.2))
    def test_the_conjunction_is_never_surer_than_its_legs(self, accuracy, width, selectivity, rung, spread):
        legs = verdicts.read_legs(
            evidence(
                accuracy=above(accuracy, width),
                selectivity=above(selectivity, width),
                rungs={"init": rung + spread * np.array([-1.0, 0.0, 1.0])},
            )
        )
        assert legs.learned >= max(legs.decodable, legs.selective, *legs.rungs.values())


class TestUse:
    def made(self, effect, nulls=0.05, predicted=True):
        draws = nulls * np.linspace(-1, 1, 39)
        return UseEvidence(effect, {"within-cell": draws, "dichotomy": draws / 2}, predicted, 0.1)

    @pytest.mark.parametrize(
        ("effect", "predicted", "verdict"),
        [
            (above(0.5, 0.1), True, verdicts.USED),
            (above(0.5, 0.1), False, verdicts.USED_UNPREDICTED),
            (above(0.0, 0.05), True, verdicts.NOT_USED),
            (above(-0.5, 0.1), True, verdicts.INCONCLUSIVE),
            (above(0.05, 0.2), True, verdicts.INCONCLUSIVE),
        ],
    )
    def test_verdicts(self, effect, predicted, verdict):
        assert verdicts.use(self.made(effect, predicted=predicted)).verdict == verdict

    def test_an_effect_of_no_consequence_is_none_however_small_its_nulls(self):
        assert verdicts.use_p(self.made(above(0.02, 0.005), nulls=0.001)) < 0.01
        assert verdicts.use(self.made(above(0.02, 0.005), nulls=0.001)).verdict == verdicts.NOT_USED

    def test_the_larger_bound_counts_and_no_nulls_show_nothing(self):
        effect = above(0.5, 0.1)
        assert verdicts.use_p(self.made(effect)) == effect.p_above(0.05 * 18 / 19)
        assert verdicts.use_p(UseEvidence(effect, {}, True, 0.1)) == 1

    def test_one_sentence_for_read_and_use(self):
        said = {verdicts.of_the_model(r, u) for r in verdicts.READS for u in verdicts.USES}
        assert verdicts.of_the_model(verdicts.LEARNED, verdicts.USED) == "model feature: learned and used"
        assert verdicts.of_the_model(verdicts.DECODABLE, verdicts.USED).startswith("used; the probe does not show")
        assert len(said) == 5


def test_holm_is_what_statsmodels_would_say():
    assert verdicts.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
