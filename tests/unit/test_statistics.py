import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from counterprobe import designs, statements, statistics
from counterprobe.progress import UserError


def made_world(n_items, n_pairs):
    """Two topics of n_items each in four classes, under made-up words."""
    return statements.World(
        items={
            topic: tuple((f"{topic}{i}", f"{topic}class{i % 4}") for i in range(n_items))
            for topic in ("cities", "animals")
        },
        name_pairs=tuple((f"Ann{i}", f"Bob{i}") for i in range(n_pairs)),
        suffix_pairs=tuple((f"plum{i}", f"barn{i}") for i in range(n_pairs)),
    )


@pytest.fixture(scope="module")
def factorial():
    return statements.factorial("factorial", {"blocks": 2}, made_world(8, 4))


@pytest.fixture(scope="module")
def rax():
    return statements.rax("rax", {}, made_world(40, 1))


def rng(seed=0):
    return np.random.default_rng(seed)


class TestWeights:
    def test_items_keep_their_texts_together_and_strata_keep_their_share(self):
        items = np.repeat(np.arange(30), 4)
        strata = (items >= 10).astype(int)
        w = statistics.two_way_weights(items, None, 200, rng(), strata)
        assert w.dtype == np.float32
        assert (w.reshape(200, 30, 4) == w.reshape(200, 30, 4)[:, :, :1]).all()
        np.testing.assert_allclose(w[:, strata == 0].sum(axis=1), 40, rtol=1e-5)
        np.testing.assert_allclose(w[:, strata == 1].sum(axis=1), 80, rtol=1e-5)

    def test_crossed_weights_are_products_and_nested_ones_those_of_the_carrier(self):
        items, carriers = np.repeat(np.arange(6), 5), np.tile(np.arange(5), 6)
        for table in statistics.two_way_weights(items, carriers, 50, rng()).reshape(50, 6, 5):
            assert np.linalg.matrix_rank(table) == 1
        nested = np.repeat([0, 0, 1, 1, 2, 2], 5)
        w = statistics.two_way_weights(items, nested, 50, rng())
        for unit in range(3):
            assert (w[:, nested == unit] == w[:, nested == unit][:, :1]).all()
        # Two carrier factors multiply: each is constant within neither, their product within both.
        both = statistics.two_way_weights(items, np.stack([nested, items % 2], axis=1), 50, rng())
        assert len(np.unique(both[:, ::5], axis=1).T) <= 6
        assert both.any(axis=1).all()

    def test_the_spread_of_a_mean_is_that_of_the_sample_mean(self):
        y = rng(1).standard_normal((12, 1))
        w = statistics.two_way_weights(np.arange(12), None, 40_000, rng(2))
        draws = (w @ y) / w.sum(axis=1, keepdims=True)
        assert draws.std() == pytest.approx(y.std(ddof=1) / np.sqrt(12), rel=0.03)

    def test_one_unit_is_refused_and_one_seed_gives_one_answer(self):
        with pytest.raises(UserError, match="one unit"):
            statistics.two_way_weights(np.zeros(8, int), None, 10, rng())
        with pytest.raises(UserError, match="one unit"):
            statistics.two_way_weights(np.arange(8), np.zeros(8, int), 10, rng())
        first, second = (statistics.two_way_weights(np.arange(8), np.arange(8) % 4, 10, rng(7)) for _ in "ab")
        assert (first == second).all()


class TestBootstrap:
    def setup_method(self):
        self.items = np.repeat(np.arange(20), 4)
        self.weights = statistics.two_way_weights(self.items, np.tile(np.arange(4), 20), 300, rng())
        self.values = rng(3).random((80, 7))

    def naive(self, values, weights, tail=0.025):
        means = []
        for w in weights.astype(float):
            known = ~np.isnan(values)
            means.append(np.average(values[known], weights=w[known]))
        return np.quantile(means, [tail, 1 - tail])

    def test_agrees_with_a_loop_over_resamples(self, monkeypatch):
        monkeypatch.setattr(statistics, "BLOCK", 300 * 3)
        self.values[self.items < 5, 2] = np.nan
        interval = statistics.bootstrap(self.values, self.weights)
        np.testing.assert_allclose(interval.estimate, np.nanmean(self.values, axis=0))
        for k in range(7):
            expected = self.naive(self.values[:, k], self.weights)
            np.testing.assert_allclose([interval.lower[k], interval.upper[k]], expected, rtol=1e-5)

    def test_few_units_widen_as_students_t_does(self):
        tail = stats.norm.cdf(-stats.t.ppf(0.975, 3))
        interval = statistics.bootstrap(self.values[:, :1], self.weights, units=4)
        expected = self.naive(self.values[:, 0], self.weights, tail)
        np.testing.assert_allclose([interval.lower[0], interval.upper[0]], expected, rtol=1e-5)

    def test_texts_that_share_their_weights_are_summed_first(self):
        weights, of_text = statistics.shared_weights(statistics.two_way_weights(self.items, None, 300, rng()))
        assert weights.shape == (300, 20)
        whole = weights[:, of_text]
        self.values[self.items < 5, 2] = np.nan
        labels, cells = rng(5).random((80, 7)) < 0.4, np.repeat(np.tile(np.arange(4), 20)[:, None], 7, axis=1)
        filled = np.nan_to_num(self.values)
        for function, arguments in (
            (statistics.bootstrap, (self.values,)),
            (statistics.balanced_bootstrap, (self.values, labels)),
            (statistics.auroc_bootstrap, (filled, labels)),
            (lambda *given, **named: statistics.cell_bootstrap(*given, **named)[1], (filled, cells)),
        ):
            expected = function(*arguments, whole)
            found = function(*arguments, weights, of_text=of_text)
            for end in ("estimate", "lower", "upper"):
                np.testing.assert_allclose(getattr(found, end), getattr(expected, end), atol=2e-6)

    def test_differences_are_paired(self):
        noise = rng(4).standard_normal((80, 1))
        paired = statistics.bootstrap((noise + 0.1) - noise, self.weights)
        assert paired.lower[0] == pytest.approx(0.1, abs=1e-6)
        assert statistics.bootstrap(noise + 0.1, self.weights).lower[0] < 0

    def test_balanced_accuracy(self):
        labels = rng(5).random((80, 2)) < 0.35
        right = rng(6).random((80, 2)) < 0.8
        interval = statistics.balanced_bootstrap(right.astype(float), labels, self.weights)
        for k in range(2):
            guess = np.where(right[:, k], labels[:, k], ~labels[:, k])
            assert interval.estimate[k] == pytest.approx(balanced_accuracy_score(labels[:, k], guess), abs=1e-6)
            draws = [balanced_accuracy_score(labels[:, k], guess, sample_weight=w) for w in self.weights]
            np.testing.assert_allclose(
                [interval.lower[k], interval.upper[k]], np.quantile(draws, [0.025, 0.975]), atol=1e-5
            )

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 10_000), st.floats(0.5, 0.95))
    def test_the_worst_cell_lies_above_a_level_iff_every_cell_does(self, seed, share):
        cells = np.tile(np.arange(4), 20)
        right = (rng(seed).random((80, 3)) < share).astype(float)
        _, worst = statistics.cell_bootstrap(right, np.repeat(cells[:, None], right.shape[1], axis=1), self.weights)
        lows = np.stack([statistics.bootstrap(right[cells == c], self.weights[:, cells == c]).lower for c in range(4)])
        for level in (0.5, 0.75):
            np.testing.assert_array_equal(worst.lower > level, (lows > level).all(axis=0))
        assert (worst.lower <= worst.estimate + 1e-6).all()
        assert (worst.estimate <= worst.upper + 1e-6).all()

    def test_auroc_agrees_with_scikit_learn_in_every_resample(self):
        scores = np.round(rng(8).standard_normal((80, 2)), 1)  # rounded, so that there are ties
        labels = rng(9).random((80, 2)) < 0.4
        interval = statistics.auroc_bootstrap(scores, labels, self.weights)
        for k in range(2):
            assert interval.estimate[k] == pytest.approx(roc_auc_score(labels[:, k], scores[:, k]))
            draws = [roc_auc_score(labels[:, k], scores[:, k], sample_weight=w) for w in self.weights]
            np.testing.assert_allclose([interval.lower[k], interval.upper[k]], np.quantile(draws, [0.025, 0.975]))

    def test_auroc_within_folds_forgives_what_differs_between_folds(self):
        labels = np.tile([True, False], 40)[:, None]
        folds = self.items % 4
        shifted = labels + 10.0 * folds[:, None]
        assert statistics.auroc_bootstrap(shifted, labels, self.weights).estimate[0] < 0.7
        assert statistics.auroc_bootstrap(shifted, labels, self.weights, folds=folds).lower[0] == 1


class TestContrasts:
    def test_are_the_means_they_are_defined_by(self, factorial):
        x = rng().standard_normal((len(factorial.texts), 5))
        names = list(designs.targets(factorial))
        d = statistics.walsh_contrasts(x, factorial)
        assert d.shape == (15, len(factorial.item_names), 5)
        item = factorial.items == 3
        a, b = factorial.factors["speaker"], factorial.factors["match"]
        np.testing.assert_allclose(d[names.index("speaker"), 3], x[item & a].mean(0) - x[item & ~a].mean(0))
        mu = {(i, j): x[item & (a == i) & (b == j)].mean(axis=0) for i in (0, 1) for j in (0, 1)}
        delta = mu[1, 1] - mu[1, 0] - mu[0, 1] + mu[0, 0]
        np.testing.assert_allclose(d[names.index("speaker^match"), 3], delta)
        # Any parity, by its classes: 2^(k-1) (mean of the odd class - mean of the even class), up to a sign.
        for name, row in zip(names, d, strict=True):
            labels, k = designs.parity(factorial, name), name.count("^") + 1
            difference = x[item & labels].mean(axis=0) - x[item & ~labels].mean(axis=0)
            np.testing.assert_allclose(row[3], (-2.0) ** (k - 1) * difference)

    def test_selected_targets_come_in_the_order_asked(self, factorial):
        x = rng().standard_normal((len(factorial.texts), 2))
        some = statistics.walsh_contrasts(x, factorial, ["truth", "speaker"])
        names = list(designs.targets(factorial))
        everything = statistics.walsh_contrasts(x, factorial)
        np.testing.assert_array_equal(some, everything[[names.index("negated^match"), names.index("speaker")]])

    def test_an_additive_representation_has_no_interaction(self, factorial):
        x = rng().standard_normal((len(factorial.item_names), 3))[factorial.items]
        for i, values in enumerate(factorial.factors.values()):
            x = x + values[:, None] * rng(i + 1).standard_normal(3)
        for name, d in zip(designs.targets(factorial), statistics.walsh_contrasts(x, factorial), strict=True):
            assert (np.abs(d).max() < 1e-12) == ("^" in name)

    def test_several_texts_a_cell_are_averaged_within_the_cell(self, factorial):
        x = rng().standard_normal((len(factorial.texts), 3))
        pick = np.concatenate([np.arange(len(x)), np.flatnonzero(factorial.factors["speaker"])[:37]])
        arrays = {f.name: getattr(factorial, f.name) for f in dataclasses.fields(factorial)}
        more = {
            key: value[pick] if isinstance(value, np.ndarray) else value
            for key, value in arrays.items()
            if key not in ("factors", "carriers", "marks", "texts", "readouts")
        }
        larger = designs.Design(
            **more,
            texts=tuple(factorial.texts[i] for i in pick),
            factors={k: v[pick] for k, v in factorial.factors.items()},
            carriers={},
            marks={},
            readouts={},
        )
        np.testing.assert_allclose(
            statistics.walsh_contrasts(x[pick], larger), statistics.walsh_contrasts(x, factorial), atol=1e-12
        )

    def test_both_estimators_agree_where_items_are_complete(self, factorial):
        x = rng().standard_normal((len(factorial.texts), 4))
        names = list(designs.targets(factorial))
        adjusted = statistics._adjusted_contrasts(x, factorial, names)
        np.testing.assert_allclose(adjusted, statistics.walsh_contrasts(x, factorial), atol=1e-10)
        assert statistics.contrast_note(factorial) == ""

    def test_incomplete_items_give_least_squares_with_item_effects(self, rax):
        assert "item fixed effects" in statistics.contrast_note(rax)
        x = rng().standard_normal((len(rax.texts), 3))
        names = list(designs.targets(rax))
        signs = [np.prod([2.0 * rax.factors[f] - 1 for f in name.split("^")], axis=0) for name in names]
        dummies = rax.items[:, None] == np.arange(len(rax.item_names))
        beta = np.linalg.lstsq(np.column_stack([*signs, dummies]), x, rcond=None)[0][: len(names)]
        d = statistics.walsh_contrasts(x, rax)
        for name, row, b in zip(names, d, beta, strict=True):
            np.testing.assert_allclose(row.mean(axis=0), 2 ** (name.count("^") + 1) * b, atol=1e-10)

    def test_incomplete_items_and_an_additive_representation_give_no_interaction(self, rax):
        x = rng().standard_normal((len(rax.item_names), 3))[rax.items]
        for i, values in enumerate(rax.factors.values()):
            x = x + 5 * values[:, None] * rng(i + 1).standard_normal(3)
        for name, d in zip(designs.targets(rax), statistics.walsh_contrasts(x, rax), strict=True):
            assert (np.abs(d).max() < 1e-9) == ("^" in name)

    def test_what_a_layout_does_not_determine_is_nan(self, rax):
        fixed = dataclasses.replace(rax, factors=rax.factors | {"speaker": rax.items % 2 == 0})
        d = statistics.walsh_contrasts(rng().standard_normal((len(rax.texts), 2)), fixed)
        for name, row in zip(designs.targets(fixed), d, strict=True):
            assert np.isnan(row).all() == (name == "speaker")


class TestNorm:
    def test_is_the_mean_product_of_different_units(self):
        d = rng().standard_normal((2, 9, 4)) + 0.5
        clusters = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4])
        for labels in (np.arange(9), clusters):
            interval = statistics.interaction_norm(d, None if labels is not clusters else clusters)
            for t in range(2):

                def norm(keep, t=t, labels=labels):
                    pairs = [(i, j) for i in keep for j in keep if labels[i] != labels[j]]
                    return np.mean([d[t, i] @ d[t, j] for i, j in pairs])

                assert interval.estimate[t] == pytest.approx(norm(range(9)))
                units = np.unique(labels)
                left_out = np.array([norm(np.flatnonzero(labels != u)) for u in units])
                g = len(units)
                error = np.sqrt((g - 1) / g * ((left_out - left_out.mean()) ** 2).sum())
                half = stats.t.ppf(0.975, g - 1) * error
                assert interval.upper[t] - interval.estimate[t] == pytest.approx(half)
                assert interval.estimate[t] - interval.lower[t] == pytest.approx(half)

    def test_one_target_by_itself_gives_the_same_number(self):
        d = rng().standard_normal((2, 9, 4))
        assert statistics.interaction_norm(d[0]).estimate == statistics.interaction_norm(d).estimate[0]
        assert statistics.sign_flip_p(d[0], None, 9, rng()) == statistics.sign_flip_p(d, None, 9, rng())[0]

    def test_two_units_are_too_few(self):
        with pytest.raises(UserError, match="at least 3"):
            statistics.interaction_norm(np.ones((1, 4, 2)), np.array([0, 0, 1, 1]))


class TestFlips:
    def test_exact_p_is_that_of_all_sign_patterns(self):
        d = rng().standard_normal((3, 7, 2)) + 0.4
        p = statistics.sign_flip_p(d, None, 10, rng())
        patterns = np.array(list(itertools.product([1, -1], repeat=7)))
        for t in range(3):
            norms = np.linalg.norm(patterns @ d[t], axis=1)
            assert p[t] == pytest.approx((norms >= norms[0] - 1e-9).mean())

    def test_clusters_flip_as_one(self):
        d = rng().standard_normal((2, 12, 3))
        clusters = np.repeat(np.arange(4), 3)
        sums = d.reshape(2, 4, 3, 3).sum(axis=2)
        np.testing.assert_allclose(
            statistics.sign_flip_p(d, clusters, 10, rng()), statistics.sign_flip_p(sums, None, 10, rng())
        )

    def test_drawn_patterns_agree_with_all_of_them(self, monkeypatch):
        d = rng(1).standard_normal((4, 11, 3)) + 0.3
        exact = statistics.sign_flip_p(d, None, 0, rng())
        monkeypatch.setattr(statistics, "MOST_ENUMERATED", 3)
        drawn = statistics.sign_flip_p(d, None, 40_000, rng())
        np.testing.assert_allclose(drawn, exact, atol=0.012)
        assert statistics.sign_flip_p(d[:1] + 100, None, 999, rng())[0] == pytest.approx(2**-10, abs=3e-3)

    def test_no_effect_at_all_is_p_one_and_undetermined_is_nan(self):
        d = np.stack([np.zeros((20, 2)), np.full((20, 2), np.nan), np.ones((20, 2))])
        p = statistics.sign_flip_p(d, None, 999, rng())
        assert p[0] == 1
        assert np.isnan(p[1])
        assert p[2] == pytest.approx(0.001, abs=0.001)


class TestCarriers:
    def test_paired_units_exchange_their_classes(self, factorial):
        x = rng().standard_normal((len(factorial.texts), 3))
        unit_of = np.zeros(len(factorial.item_names), int)
        unit_of[factorial.items] = factorial.carriers["speaker"]
        d = statistics.walsh_contrasts(x, factorial, ["speaker^negated"])
        expected = statistics.sign_flip_p(d, unit_of, 0, rng())[0]
        assert statistics.carrier_p(x, factorial, "speaker^negated", "speaker", 99, rng()) == pytest.approx(expected)

    def test_units_of_one_class_permute_them(self, factorial):
        names = 2 * (factorial.carriers["speaker"]) + factorial.factors["speaker"]
        single = dataclasses.replace(factorial, carriers={"speaker": names})
        x = rng(3).standard_normal((len(factorial.texts), 3))
        strong = x + 3.0 * (single.factors["speaker"] ^ single.factors["negated"])[:, None]
        p = statistics.carrier_p(strong, single, "speaker^negated", "speaker", 4000, rng())
        # 8 names in two classes of 4: only the labelling itself and its mirror image reach it, 2 of 70.
        assert p == pytest.approx(2 / 70, abs=0.01)
        assert statistics.carrier_p(x, single, "speaker^negated", "speaker", 4000, rng()) > 0.05

    def test_a_factor_outside_the_target_is_refused(self, factorial):
        with pytest.raises(ValueError, match="suffix"):
            statistics.carrier_p(np.ones((len(factorial.texts), 1)), factorial, "speaker^negated", "suffix", 9, rng())

    def test_everything_at_one_site(self, factorial):
        x = rng().standard_normal((len(factorial.texts), 3))
        tests = statistics.contrast_tests(x, factorial, 200, rng())
        assert tests.targets == tuple(designs.targets(factorial))
        inside = np.array(["speaker" in t for t in tests.targets])
        np.testing.assert_array_equal(np.isfinite(tests.p_carriers["speaker"]), inside)
        np.testing.assert_array_equal(np.isfinite(tests.norm_carriers["speaker"].lower), inside)
        assert set(tests.p_carriers) == {"speaker", "suffix"}
        assert ((tests.p_items > 0) & (tests.p_items <= 1)).all()

    def test_units_of_inference_are_couples_and_the_carriers_of_the_target(self, factorial, rax):
        items, carriers = statistics.inference_units(factorial, "suffix^speaker")
        assert items is factorial.couples
        np.testing.assert_array_equal(carriers[:, 0], factorial.carriers["speaker"])
        np.testing.assert_array_equal(carriers[:, 1], factorial.carriers["suffix"])
        assert statistics.inference_units(factorial, "truth")[1] is None
        assert statistics.inference_units(rax, "speaker")[1] is None


class TestSeeds:
    def test_t_interval_is_scipys(self):
        samples = rng().standard_normal((5, 3))
        interval = statistics.t_interval(samples)
        for k in range(3):
            expected = stats.t.interval(0.95, 4, samples[:, k].mean(), stats.sem(samples[:, k]))
            np.testing.assert_allclose([interval.lower[k], interval.upper[k]], expected)
        single = statistics.t_interval(samples[:, 0])
        assert single.lower.shape == ()
        assert float(single.lower) == interval.lower[0]
        with pytest.raises(UserError, match="at least 2"):
            statistics.t_interval(samples[:1])

    def test_one_more_draw_exceeds_the_prediction_bound_as_often_as_said(self):
        draws = rng().standard_normal((4, 40_000))
        assert (draws[3] > statistics.prediction_bound(draws[:3])).mean() == pytest.approx(0.05, abs=0.004)
        assert statistics.prediction_bound(draws[:3, 0]) == statistics.prediction_bound(draws[:3])[0]
        with pytest.raises(UserError, match="seeds"):
            statistics.prediction_bound(draws[:1])

    def test_holm_by_hand(self):
        adjusted = statistics.holm(np.array([0.01, 0.04, np.nan, 0.03, 0.5]))
        np.testing.assert_allclose(adjusted, [0.04, 0.09, np.nan, 0.09, 0.5])

    @settings(deadline=None)
    @given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.5))
    def test_holm_rejects_what_stepping_down_rejects(self, p, alpha):
        p = np.array(p)
        rejected = np.zeros(len(p), bool)
        for step, i in enumerate(np.argsort(p, kind="stable")):
            if p[i] * (len(p) - step) > alpha:
                break
            rejected[i] = True
        np.testing.assert_array_equal(statistics.holm(p) <= alpha, rejected)

    def test_equivalence_takes_the_whole_interval(self):
        lower, upper = np.array([-0.04, -0.06, 0.46, np.nan]), np.array([0.04, 0.01, 0.54, 0.0])
        np.testing.assert_array_equal(statistics.equivalence(lower, upper, 0.05), [True, False, False, False])
        np.testing.assert_array_equal(statistics.equivalence(lower, upper, 0.05, 0.5), [False, False, True, False])


def test_minimal_detectable_effect():
    base = statistics.minimal_detectable(96, 16, 2, 128)
    assert 0 < base < statistics.minimal_detectable(48, 16, 2, 128)
    assert base < statistics.minimal_detectable(96, 16, 2, 768)
    assert base < statistics.minimal_detectable(96, 16, 2, 128, clusters=8)
    # Twice the effect size on the scale of a three-way contrast, whose terms are twice as many.
    assert statistics.minimal_detectable(96, 16, 3, 128) == pytest.approx(2 * base)
    assert statistics.minimal_detectable(96, 16, 2, 128, clusters=5) == float("inf")
