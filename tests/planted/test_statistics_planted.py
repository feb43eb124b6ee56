"""What the tests and intervals of `statistics` say about representations whose truth was planted.

Draws are batched: a representation has draws × d columns, contrasts act on columns, and the columns are
dealt back to the draws afterwards.
"""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from counterprobe import designs, statements, statistics

DRAWS, D = 300, 16


@pytest.fixture(scope="module")
def factorial():
    """96 items, 16 texts each; 16 pairs of names, so that six items share a pair."""
    world = statements.World(
        items={
            topic: tuple((f"{topic}{i}", f"{topic}class{i % 6}") for i in range(48)) for topic in ("cities", "animals")
        },
        name_pairs=tuple((f"Ann{i}", f"Bob{i}") for i in range(16)),
        suffix_pairs=tuple((f"plum{i}", f"barn{i}") for i in range(16)),
    )
    return statements.factorial("factorial", {"blocks": 4}, world)


@pytest.fixture(scope="module")
def rax():
    world = statements.World(
        items={"cities": tuple((f"city{i}", f"country{i % 12}") for i in range(120))},
        name_pairs=(("Alice", "Bob"),),
        suffix_pairs=(),
    )
    return statements.rax("rax", {}, world)


def additive(design, rng, noise=0.3):
    """Item + a direction for every factor + a vector for every carrier token + noise, for all draws at
    once."""
    width = DRAWS * D
    x = rng.standard_normal((len(design.item_names), width))[design.items]
    for factor, values in design.factors.items():
        x += 2 * values[:, None] * rng.standard_normal(width)
        if factor in design.carriers:
            tokens = 2 * design.carriers[factor] + values
            x += rng.standard_normal((tokens.max() + 1, width))[tokens]
    return x + noise * rng.standard_normal((len(design.texts), width))


def name_look_ups(design, rng):
    """Each name has its own interaction with NOT; nothing is shared by the names of a gender."""
    tokens = 2 * design.carriers["speaker"] + design.factors["speaker"]
    return rng.standard_normal((tokens.max() + 1, DRAWS * D))[tokens] * design.factors["negated"][:, None]


def contrasts_by_draw(x, design, target):
    d = statistics.walsh_contrasts(x, design, [target])[0]
    return d.reshape(len(d), DRAWS, D).transpose(1, 0, 2)


def unit_of_item(design, labels):
    units = np.zeros(len(design.item_names), int)
    units[design.items] = labels
    return units


def uniform(p):
    # Sign-flip p-values lie on a grid; a grid finer than 1/400 is uniform for 300 draws.
    return stats.kstest(p, "uniform").pvalue


def false_positives_at_most(rate, draws=DRAWS):
    """The count that a test of this size exceeds once in a thousand times."""
    return stats.binom.isf(1e-3, draws, rate)


class TestAdditive:
    def test_p_values_are_uniform_over_items_and_over_names(self, factorial):
        rng = np.random.default_rng(1)
        d = contrasts_by_draw(additive(factorial, rng), factorial, "speaker^negated")
        names = unit_of_item(factorial, factorial.carriers["speaker"])
        for clusters in (None, names):
            p = statistics.sign_flip_p(d, clusters, 999, rng)
            assert uniform(p) > 1e-3
        norm = statistics.interaction_norm(d)
        assert abs(norm.estimate.mean()) < 4 * norm.estimate.std() / np.sqrt(DRAWS)

    def test_the_published_layout_too(self, rax):
        rng = np.random.default_rng(2)
        d = contrasts_by_draw(additive(rax, rng), rax, "speaker^negated")
        assert uniform(statistics.sign_flip_p(d, None, 999, rng)) > 1e-3
        norm = statistics.interaction_norm(d)
        assert abs(norm.estimate.mean()) < 4 * norm.estimate.std() / np.sqrt(DRAWS)
        assert ((norm.lower <= 0) & (norm.upper >= 0)).mean() > 0.95 - 0.04


class TestNameLookUps:
    def test_items_call_them_an_interaction_and_names_do_not(self, factorial):
        rng = np.random.default_rng(3)
        x = additive(factorial, rng) + name_look_ups(factorial, rng)
        d = contrasts_by_draw(x, factorial, "speaker^negated")
        names = unit_of_item(factorial, factorial.carriers["speaker"])
        assert (statistics.sign_flip_p(d, None, 999, rng) < 0.05).mean() > 0.95
        p = statistics.sign_flip_p(d, names, 999, rng)
        assert (p < 0.05).sum() <= false_positives_at_most(0.05)
        assert uniform(p) > 1e-3
        items, shared = statistics.interaction_norm(d), statistics.interaction_norm(d, names)
        assert (items.lower > 0).mean() > 0.9
        assert (shared.lower > 0).sum() <= false_positives_at_most(0.05)
        assert abs(shared.estimate.mean()) < 4 * shared.estimate.std() / np.sqrt(DRAWS)

    def test_names_of_one_gender_each_are_permuted(self, factorial):
        rng = np.random.default_rng(4)
        x = additive(factorial, rng) + name_look_ups(factorial, rng)
        tokens = 2 * factorial.carriers["speaker"] + factorial.factors["speaker"]
        single = dataclasses.replace(factorial, carriers={"speaker": tokens})
        p = [
            statistics.carrier_p(x[:, i * D : (i + 1) * D], single, "speaker^negated", "speaker", 199, rng)
            for i in range(100)
        ]
        assert (np.array(p) < 0.05).sum() <= false_positives_at_most(0.05, 100)
        shared = x[:, :D] + 0.7 * (factorial.factors["speaker"] & factorial.factors["negated"])[:, None]
        assert statistics.carrier_p(shared, single, "speaker^negated", "speaker", 199, rng) < 0.05


class TestInteraction:
    def test_the_interval_of_its_norm_covers_it(self, factorial):
        rng = np.random.default_rng(5)
        x = additive(factorial, rng, noise=1.0)
        delta = rng.standard_normal(D)
        both = (factorial.factors["speaker"] & factorial.factors["negated"])[:, None]
        for size in (0.3, 1.0):
            planted = size * delta / np.linalg.norm(delta)
            d = contrasts_by_draw(x + both * np.tile(planted, DRAWS), factorial, "speaker^negated")
            for clusters in (None, unit_of_item(factorial, factorial.carriers["speaker"])):
                norm = statistics.interaction_norm(d, clusters)
                covered = ((norm.lower <= size**2) & (size**2 <= norm.upper)).mean()
                assert covered > 0.92
                assert norm.estimate.mean() == pytest.approx(size**2, abs=4 * norm.estimate.std() / DRAWS**0.5)

    @pytest.mark.parametrize(("noise", "clusters"), [(1.0, None), (0.5, 16)])
    def test_the_minimal_detectable_effect_is_found_nine_times_in_ten(self, factorial, noise, clusters):
        rng = np.random.default_rng(6)
        names = unit_of_item(factorial, factorial.carriers["speaker"]) if clusters else None
        size = noise * statistics.minimal_detectable(96, 16, 2, D, clusters)
        both = (factorial.factors["speaker"] & factorial.factors["negated"])[:, None]
        planted = np.tile(np.eye(1, D)[0] * size, DRAWS)
        x = additive(factorial, rng, noise) + both * planted
        d = contrasts_by_draw(x, factorial, "speaker^negated")
        if clusters:
            # The carriers' own vectors are main effects: they must cost this test nothing.
            assert len(np.unique(names)) == clusters
        power = (statistics.sign_flip_p(d, names, 499, rng) < 0.05).mean()
        assert 0.83 < power < 0.97


class TestTwoWayCoverage:
    """values = item effect + carrier effect + noise: what a resample of items alone cannot know."""

    @pytest.mark.parametrize("layout", ["nested", "crossed"])
    @pytest.mark.parametrize("n_carriers", [8, 16])
    def test_items_and_carriers_cover_where_items_alone_do_not(self, layout, n_carriers):
        rng = np.random.default_rng([7, n_carriers, layout == "nested"])
        items = np.repeat(np.arange(128), 4)
        carriers = items % n_carriers if layout == "nested" else (items + np.tile(np.arange(4) * 2, 128)) % n_carriers
        y = 1.5 * rng.standard_normal((n_carriers, 2000))[carriers] + rng.standard_normal((128, 2000))[items]
        y += rng.standard_normal(y.shape)

        def covered(weights, units=None):
            interval = statistics.bootstrap(y, weights, units=units)
            return ((interval.lower <= 0) & (interval.upper >= 0)).mean()

        both = statistics.two_way_weights(items, carriers, 600, rng)
        assert covered(both) > 0.88
        assert covered(both, units=n_carriers) > 0.93
        assert covered(statistics.two_way_weights(items, None, 600, rng)) < 0.65

    def test_items_alone_cover_what_carriers_do_not_move(self):
        rng = np.random.default_rng(8)
        items = np.repeat(np.arange(48), 16)
        strata = items // 24
        y = rng.standard_normal((48, 500))[items] + strata[:, None] * 3.0 + rng.standard_normal((768, 500))
        interval = statistics.bootstrap(y, statistics.two_way_weights(items, None, 500, rng, strata))
        assert 0.91 < ((interval.lower <= 1.5) & (interval.upper >= 1.5)).mean() < 0.98

    def test_the_worst_cell_is_not_called_above_its_level_too_often(self):
        rng = np.random.default_rng(9)
        items, cells = np.repeat(np.arange(60), 4), np.tile(np.arange(4), 60)
        # One cell is exactly at .5 and item effects are shared by the cells: lower > .5 at most in 1 of 40.
        bias = np.clip(0.5 + 0.2 * rng.standard_normal((60, 800)), 0, 1)[items]
        share = np.where((cells == 0)[:, None], bias, 0.95)
        right = (rng.random(share.shape) < share).astype(float)
        _, worst = statistics.cell_bootstrap(
            right, np.repeat(cells[:, None], right.shape[1], axis=1), statistics.two_way_weights(items, None, 500, rng)
        )
        assert (worst.lower > 0.5).sum() <= false_positives_at_most(0.025, 800)
        assert (worst.upper < 0.5).sum() <= false_positives_at_most(0.025, 800)


def test_an_auroc_interval_covers_the_auroc_of_the_population():
    rng = np.random.default_rng(10)
    items = np.repeat(np.arange(50), 8)
    labels = np.tile([True, False], 200)[:, None]
    scores = labels * 1.0 + 0.7 * rng.standard_normal((50, 300))[items] + rng.standard_normal((400, 300))
    # Two different items: the difference of scores is N(1, 2 (0.49 + 1)).
    truth = stats.norm.cdf(1 / np.sqrt(2 * 1.49))
    weights = statistics.two_way_weights(items, None, 400, rng)
    interval = statistics.auroc_bootstrap(scores, np.broadcast_to(labels, scores.shape), weights)
    assert ((interval.lower <= truth) & (truth <= interval.upper)).mean() > 0.9


def test_contrasts_of_every_parity_of_a_complete_design_are_independent_of_each_other(factorial):
    rng = np.random.default_rng(11)
    x = 3.0 * designs.parity(factorial, "truth")[:, None] + np.zeros((1, 2))
    x = x + 0.01 * rng.standard_normal((len(factorial.texts), 2))
    for name, norm in zip(
        designs.targets(factorial),
        statistics.interaction_norm(statistics.walsh_contrasts(x, factorial)).estimate,
        strict=True,
    ):
        assert (norm > 1) == (name == "negated^match")
