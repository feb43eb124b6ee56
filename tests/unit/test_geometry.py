"""Geometry against direct, slow computations, on planted answers, and where there is no answer."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from counterprobe import designs, geometry, probe_grid, splits, statements, statistics, tables
from counterprobe.designs import Design

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
SITE = {**tables.NOT_APPLICABLE, "model": "m", "revision": "r", "step": 1, "weights": "trained", "design": "toy"}
SETTINGS = {"penalties": [0.1], "dichotomies": 8, "inner_folds": 0, "outer_folds": 3, "seed": 0}
STATISTICS = {"resamples": 200, "confidence": 0.95}


def toy(n_items, m=2, texts=None, aliases=None, repeats=1):
    """Every item with every cell, one factor "f0", "f1" ... a bit; `texts` keeps a subset of them."""
    cells = np.tile(np.arange(2**m).repeat(repeats), n_items)
    items = np.arange(n_items).repeat(repeats * 2**m)
    kept = np.arange(len(items)) if texts is None else np.asarray(texts)
    cells, items = cells[kept], items[kept]
    zeros = np.zeros(len(items), np.int64)
    return Design(
        name="toy",
        texts=tuple(f"text {i}" for i in range(len(items))),
        items=items,
        item_names=tuple(f"item {i}" for i in range(n_items)),
        couples=items,
        strata=zeros,
        stratum_names=("all",),
        factors={f"f{k}": (cells >> k & 1).astype(bool) for k in range(m)},
        carriers={},
        carrier_counts={},
        blocks=zeros - 1,
        rows=np.arange(len(items)),
        files=zeros,
        marks={"last": zeros},
        primary=("f0", "f1"),
        needed=(),
        aliases=aliases or {},
        readouts={},
    )


@pytest.fixture(scope="module")
def factorial():
    world = statements.world({"topics": {"cities": 16, "animals": 16}, "carriers": 8, "seed": 0}, RESOURCES)
    return statements.factorial("factorial", {"blocks": 4, "seed": 0}, world)


def signs(design, target):
    return np.prod([np.where(design.factors[factor], 1.0, -1.0) for factor in target.split("^")], axis=0)


def by_score(rows):
    return {(row["target"], row["score"]): row for row in rows}


def exact(x, design):
    return by_score(tables.frame(geometry.exact_rows(x, design, 0.95, 0, SITE)).to_dict("records"))


def planted(design, effects, rng, noise=0.3, d=12):
    """Item vectors + Σ sign · effect + noise; effects: target -> vector."""
    x = rng.standard_normal((len(design.item_names), d))[design.items]
    for target, vector in effects.items():
        x = x + signs(design, target)[:, None] * vector
    return x + noise * rng.standard_normal(x.shape)


# --- direct, slow computations -----------------------------------------------------------------------------


def slow_u(first, second, units):
    """Mean of first_i · second_j over items i, j of different units."""
    products = [first[i] @ second[j] for i in range(len(units)) for j in range(len(units)) if units[i] != units[j]]
    return np.mean(products)


def slow_coefficients(x, design, target):
    """Per item, sign-weighted mean of its texts (one a cell)."""
    return np.stack(
        [
            np.mean(
                [s * v for s, v, at in zip(signs(design, target), x, design.items, strict=True) if at == item], axis=0
            )
            for item in range(len(design.item_names))
        ]
    )


def slow_variance(x, design, item):
    own = x[design.items == item]
    return np.mean([((row - own.mean(0)) ** 2).sum() for row in own])


def slow_parallelism(x, design, target, units):
    """Coding vectors from texts themselves: every pairing, every two conditions, items of different units."""
    label = designs.parity(design, target)
    names = list(design.factors)
    best = -np.inf
    for flipped in target.split("^"):
        others = [name for name in names if name != flipped]
        vectors = []
        for condition in itertools.product([False, True], repeat=len(others)):
            here = np.logical_and.reduce([design.factors[o] == c for o, c in zip(others, condition, strict=True)])
            of_items = []
            for item in range(len(design.item_names)):
                rows = here & (design.items == item)
                of_items.append(x[rows & label].mean(0) - x[rows & ~label].mean(0))
            vectors.append(np.stack(of_items))
        norms = [slow_u(v, v, units) for v in vectors]
        if min(norms) <= 0:
            return None
        cosines = [
            slow_u(v, w, units) / np.sqrt(norms[i] * norms[j])
            for (i, v), (j, w) in itertools.combinations(enumerate(vectors), 2)
        ]
        best = max(best, np.mean(cosines))
    return best


class TestAgainstDirectComputation:
    @settings(max_examples=12)
    @given(st.integers(5, 7), st.integers(2, 3), st.integers(1, 5), st.integers(0, 10**6))
    def test_walsh_shares_and_u_statistics(self, n_items, m, d, seed):
        rng = np.random.default_rng(seed)
        design = toy(n_items, m)
        x = rng.standard_normal((len(design.texts), d))
        # Units of unequal size.
        units = np.minimum(np.arange(n_items), n_items - 2)
        found = geometry.moments(x, design, units)
        variance = np.mean([slow_variance(x, design, item) for item in range(n_items)])
        total = 0.0
        for target in designs.targets(design):
            beta = slow_coefficients(x, design, target)
            number = geometry.salience(found, target)
            assert number.estimate == pytest.approx(slow_u(beta, beta, units) / variance, abs=1e-9)
            share = geometry.variance_share(found, target).estimate
            assert share == pytest.approx(np.mean((beta**2).sum(1)) / variance, abs=1e-9)
            total += share
        assert total == pytest.approx(1, abs=1e-9)

    @pytest.mark.parametrize("seed", range(3))
    def test_pairs(self, seed):
        rng = np.random.default_rng(seed)
        design = toy(6)
        effects = {t: 2 * rng.standard_normal(4) for t in designs.targets(design)}
        x = planted(design, effects, rng, d=4)
        units = np.array([0, 0, 1, 2, 3, 3])
        found = geometry.moments(x, design, units)
        cell = {
            (a, b): np.stack(
                [
                    x[(design.items == i) & (design.factors["f0"] == a) & (design.factors["f1"] == b)][0]
                    for i in range(6)
                ]
            )
            for a in (0, 1)
            for b in (0, 1)
        }
        delta = cell[1, 1] - cell[1, 0] - cell[0, 1] + cell[0, 0]
        d_a = (cell[1, 1] + cell[1, 0] - cell[0, 1] - cell[0, 0]) / 2
        d_b = (cell[1, 1] + cell[0, 1] - cell[1, 0] - cell[0, 0]) / 2
        square = slow_u(delta, delta, units)
        for which, basic in enumerate((d_a, d_b)):
            ratio = geometry.interaction_ratio(found, "f0^f1", which).estimate
            assert ratio == pytest.approx(square / slow_u(basic, basic, units), abs=1e-9)
        given_b, given_not_b = cell[1, 1] - cell[0, 1], cell[1, 0] - cell[0, 0]
        cosine = slow_u(given_b, given_not_b, units) / np.sqrt(
            slow_u(given_b, given_b, units) * slow_u(given_not_b, given_not_b, units)
        )
        assert geometry.conditional_cosine(found, "f0^f1", 0).estimate == pytest.approx(cosine, abs=1e-9)
        # With two factors a coding vector is an effect given the other factor.
        assert geometry.parallelism(found, "f0").estimate == pytest.approx(cosine, abs=1e-9)

    @pytest.mark.parametrize("m", [2, 3])
    def test_parallelism(self, m):
        rng = np.random.default_rng(m)
        design = toy(6, m)
        x = planted(design, {f"f{k}": 3 * rng.standard_normal(5) for k in range(m)}, rng, d=5)
        units = np.array([0, 0, 1, 2, 3, 4])
        found = geometry.moments(x, design, units)
        for target in designs.targets(design):
            assert geometry.parallelism(found, target).estimate == pytest.approx(
                slow_parallelism(x, design, target, units), abs=1e-9
            )

    def test_intervals_delete_one_unit_at_a_time(self):
        rng = np.random.default_rng(5)
        design = toy(8, 3)
        x = planted(design, {t: rng.standard_normal(6) for t in designs.targets(design)}, rng, d=6)
        units = np.array([0, 0, 1, 2, 3, 4, 5, 6])
        found = geometry.moments(x, design, units)
        part = []
        for left_out in range(7):
            keep = units != left_out
            rows = keep[design.items]
            smaller = toy(int(keep.sum()), 3)
            part.append(geometry.moments(x[rows], smaller, units[keep]))
        half = stats.t.ppf(0.975, 6)
        for of in (
            lambda m: geometry.salience(m, "f0^f1"),
            lambda m: geometry.variance_share(m, "f2"),
            lambda m: geometry.salience_ratio(m, "f0^f2"),
            lambda m: geometry.conditional_cosine(m, "f1^f2"),
            lambda m: geometry.parallelism(m, "f1"),
        ):
            number, without = of(found), np.array([of(m).estimate for m in part])
            error = np.sqrt(6 / 7 * ((without - without.mean()) ** 2).sum())
            assert number.upper - number.estimate == pytest.approx(half * error, rel=1e-6)
            assert number.estimate - number.lower == pytest.approx(half * error, rel=1e-6)

    def test_norms_are_those_of_the_exact_tests(self, factorial):
        x = np.random.default_rng(0).standard_normal((len(factorial.texts), 8))
        _, units = geometry.units_of(factorial, "speaker^negated")
        found = geometry.moments(x, factorial, units)
        norm = statistics.interaction_norm(statistics.walsh_contrasts(x, factorial, ["speaker^negated"])[0], units)
        t = found.index("speaker^negated")
        assert 16 * found.inner[t, t] == pytest.approx(float(norm.estimate), abs=1e-9)

    def test_products_of_halves(self):
        rng = np.random.default_rng(2)
        design = toy(7)
        x = rng.standard_normal((len(design.texts), 3))
        units = np.array([0, 1, 1, 2, 3, 4, 5])
        found = geometry.moments(x, design, units)
        v, without = geometry._products_of_halves(found, [0, 1], 2, np.random.default_rng(9))
        halves = np.random.default_rng(9).permuted(np.broadcast_to(np.arange(6) < 3, (geometry.HALVINGS, 6)), axis=1)
        beta = {t: slow_coefficients(x, design, t) for t in designs.targets(design)}
        for split, side, left_out in itertools.product((0, 5), (0, 1), (None, 0, 4)):
            keep = (halves[split] if side == 0 else ~halves[split])[units] & (
                units != (-1 if left_out is None else left_out)
            )
            slow = slow_u(beta["f1"][keep], beta["f0^f1"][keep], units[keep])
            fast = v[side, split, 1] if left_out is None else without[side, left_out, split, 1]
            assert fast == pytest.approx(slow, abs=1e-9)

    def test_ccgp_is_that_of_scikit_learn(self):
        rng = np.random.default_rng(3)
        design = toy(12, 3)
        x = planted(design, {"f0": rng.standard_normal(5), "f0^f1": rng.standard_normal(5)}, rng, noise=1.5, d=5)
        folds = splits.folds(design, "items", 0, n_folds=3)
        reading = geometry.read_out(torch.tensor(x), design, folds, np.zeros((len(x), 0), bool), 0.05)
        assert len(reading.splits) == 9
        for column, (target, factor) in enumerate(reading.splits):
            slow = np.full(len(x), np.nan)
            label, side = designs.parity(design, target), design.factors[factor]
            for fold in folds:
                mean, scale = x[fold.train].mean(0), x[fold.train].std(0)
                for value in (False, True):
                    train = fold.train[side[fold.train] == value]
                    test = fold.test[side[fold.test] != value]
                    with threadpool_limits(1, user_api="blas"):
                        peer = LogisticRegression(C=1 / (0.05 * len(train)), tol=1e-12, max_iter=5000)
                        peer.fit((x[train] - mean) / scale, label[train])
                    slow[test] = peer.predict((x[test] - mean) / scale) == label[test]
            assert np.nanmean(reading.ccgp[:, column]) == pytest.approx(slow.mean(), abs=1e-6)
            assert (reading.ccgp[:, column] == slow).all()

    def test_targets_are_held_out_as_by_the_probes(self, factorial):
        x = torch.tensor(np.random.default_rng(1).standard_normal((len(factorial.texts), 8)))
        folds = splits.folds(factorial, "carriers", 0)
        labels = np.stack(list(designs.targets(factorial).values()), axis=1)
        reading = geometry.read_out(x, factorial, folds, labels[:, :2], 0.1)
        held_out = probe_grid.cross_validate(x, labels, folds, [0.1], "logistic")
        assert np.allclose(reading.margin, held_out.margin, atol=1e-4)
        assert (reading.correct == held_out.correct).mean() > 0.999
        assert (reading.dichotomies == reading.correct[:, :2]).mean() > 0.999


# --- planted answers ---------------------------------------------------------------------------------------


class TestPlanted:
    DRAWS = 60

    def draws(self, effects_of, n_items=24, d=10, noise=0.6, m=2):
        design = toy(n_items, m)
        units = np.arange(n_items)
        for seed in range(self.DRAWS):
            rng = np.random.default_rng(seed)
            yield geometry.moments(planted(design, effects_of(rng, d), rng, noise, d), design, units)

    @staticmethod
    def covered(numbers, truth):
        return np.mean([number.lower <= truth <= number.upper for number in numbers])

    def test_gain_modulation_lies_inside(self):
        def effects(rng, d):
            a, b = rng.standard_normal((2, d))
            return {"f0": a, "f1": b, "f0^f1": 0.4 * a - 0.2 * b}

        numbers = [geometry.gain_share(m, "f0^f1") for m in self.draws(effects)]
        assert np.mean([n.estimate for n in numbers]) == pytest.approx(1, abs=0.03)
        assert self.covered(numbers, 1) >= 0.85

    def test_a_direction_of_its_own_lies_outside_and_a_plug_in_would_not_say_so(self):
        def effects(rng, d):
            a, b, own = np.linalg.qr(rng.standard_normal((d, 3)))[0].T
            return {"f0": 1.5 * a, "f1": 1.5 * b, "f0^f1": 0.6 * own}

        numbers, plug_in = [], []
        for m in self.draws(effects):
            numbers.append(geometry.gain_share(m, "f0^f1"))
            a, b, delta = m.coefficients.sum(0)
            basis = np.linalg.qr(np.stack([a, b], axis=1))[0]
            plug_in.append(((basis.T @ delta) ** 2).sum() / (delta**2).sum())
        assert np.mean([n.estimate for n in numbers]) == pytest.approx(0, abs=0.01)
        assert self.covered(numbers, 0) >= 0.85
        assert np.mean(plug_in) > 2 * abs(np.mean([n.estimate for n in numbers]))

    def test_half_and_half(self):
        def effects(rng, d):
            a, b, own = np.linalg.qr(rng.standard_normal((d, 3)))[0].T
            return {"f0": 1.5 * a, "f1": 1.5 * b, "f0^f1": 0.5 * own + 0.5 * a}

        numbers = [geometry.gain_share(m, "f0^f1") for m in self.draws(effects)]
        assert np.mean([n.estimate for n in numbers]) == pytest.approx(0.5, abs=0.03)
        assert self.covered(numbers, 0.5) >= 0.85

    def test_additive_is_null_everywhere(self):
        def effects(rng, d):
            a, b = rng.standard_normal((2, d))
            return {"f0": a, "f1": b}

        found = list(self.draws(effects))
        for of, truth in ((geometry.salience, 0), (geometry.interaction_ratio, 0), (geometry.conditional_cosine, 1)):
            numbers = [of(m, "f0^f1") for m in found]
            mean = np.mean([n.estimate for n in numbers])
            error = np.std([n.estimate for n in numbers]) / np.sqrt(self.DRAWS)
            assert abs(mean - truth) < 4 * error + 1e-3
            assert self.covered(numbers, truth) >= 0.9
        parallel = [geometry.parallelism(m, "f0").estimate for m in found]
        assert np.mean(parallel) == pytest.approx(1, abs=0.01)
        assert np.mean([geometry.parallelism(m, "f0^f1").estimate for m in found]) == pytest.approx(-1, abs=0.01)
        assert np.mean([geometry.gain_share(m, "f0^f1").note == geometry.NO_DELTA for m in found]) > 0.9

    def test_salience_is_the_planted_share(self):
        def effects(rng, d):
            a, b, c = 2 * np.linalg.qr(rng.standard_normal((d, 3)))[0].T
            return {"f0": a, "f1": 0.5 * b, "f0^f1": 0.25 * c}

        found = list(self.draws(effects, noise=0.6))
        # Of four texts an item, noise keeps three degrees of freedom.
        total = 4 + 1 + 0.25 + 0.36 * 10 * 3 / 4
        for target, square in (("f0", 4), ("f1", 1), ("f0^f1", 0.25)):
            numbers = [geometry.salience(m, target) for m in found]
            assert np.mean([n.estimate for n in numbers]) == pytest.approx(square / total, rel=0.05)
            assert self.covered(numbers, square / total) >= 0.85
        ratio = [geometry.salience_ratio(m, "f0^f1").estimate for m in found]
        assert np.mean(ratio) == pytest.approx(0.25 / 2.5, rel=0.05)

    def test_isotropic_noise_is_at_its_levels(self):
        design = toy(40, 3)
        x = np.random.default_rng(0).standard_normal((len(design.texts), 200))
        rows = exact(x, design)
        for target in designs.targets(design):
            assert rows[target, "variance_share"]["estimate"] == pytest.approx(1 / 7, abs=0.01)
            assert rows[target, "variance_share"]["level"] == pytest.approx(1 / 7)
            assert abs(rows[target, "salience"]["estimate"]) < 0.005

    def test_what_generalises_and_what_does_not(self, factorial):
        rng = np.random.default_rng(0)
        basic, look_up = rng.standard_normal((2, 24))
        x = planted(
            factorial, {"speaker": basic, "negated": 2 * rng.standard_normal(24), "match^negated": look_up}, rng, d=24
        )
        folds = splits.folds(factorial, "carriers", 0)
        pool = geometry.balanced_dichotomies(factorial, 16, 0)
        reading = geometry.read_out(torch.tensor(x), factorial, folds, pool, 0.01)
        resampling = probe_grid.resample(factorial, list(designs.targets(factorial)), STATISTICS, 0)
        rows = by_score(geometry.probe_rows(reading, x, factorial, resampling, SITE))
        assert rows["speaker", "ccgp"]["lower"] > 0.95
        assert rows["speaker|negated", "ccgp"]["estimate"] > 0.95
        # match is there only together with negated: what is right in one condition is wrong in the other.
        assert rows["match|negated", "ccgp"]["upper"] < 0.2
        assert rows["negated^match|speaker", "ccgp"]["estimate"] > 0.95
        assert rows["speaker^suffix", "margin_ratio"]["upper"] < 0.3
        assert rows["negated^match", "margin_ratio"]["lower"] > 0.5
        shattering = rows["none", "shattering_dimensionality"]
        assert 0.5 < shattering["lower"] < shattering["upper"] < 0.95
        assert "16 balanced dichotomies" in shattering["note"]
        assert rows["negated^match", "margin_ratio"]["note"] == "closed under XOR: negated ^ match = truth"


# --- where there is no answer ------------------------------------------------------------------------------


def all_rows(x, design, protocol="items"):
    x = np.asarray(x, np.float32)
    rows = list(geometry.exact_rows(x, design, 0.95, 0, SITE))
    folds = splits.folds(design, protocol, 0, n_folds=3)
    pool = geometry.balanced_dichotomies(design, 8, 0)
    reading = geometry.read_out(torch.tensor(x), design, folds, pool, 0.1)
    resampling = probe_grid.resample(design, list(designs.targets(design)), STATISTICS, 0)
    here = {**SITE, "protocol": protocol, "probe": "logistic"}
    rows += geometry.probe_rows(reading, x, design, resampling, here)
    return tables.frame(rows)


class TestDefinedEverywhere:
    def test_constant_activations(self):
        rows = all_rows(np.full((9 * 8, 4), 1.7), toy(9, 3))
        geometric = rows[(rows.probe == "geometry") | rows.score.isin(["relative_margin", "margin_ratio"])]
        assert geometric.estimate.isna().all()
        assert geometric.note.str.contains(geometry.CONSTANT).all()
        assert (rows[rows.score == "ccgp"].estimate == 0.5).all()
        assert (rows[rows.score == "shattering_dimensionality"].estimate == 0.5).all()

    def test_rank_deficient_and_more_dimensions_than_texts(self):
        rng = np.random.default_rng(0)
        design = toy(9, 2)
        line = planted(design, {"f0": np.array([2.0])}, rng, d=1) @ rng.standard_normal((1, 4))
        wide = planted(design, {"f0": np.ones(100)}, rng, noise=0.1, d=100)
        for x in (line, wide):
            rows = all_rows(x, design).set_index(["target", "score"])
            assert rows.loc["f0", "salience"].estimate.item() > 0.5
            assert rows.loc["f0", "ccgp"].estimate.item() > 0.9
            assert not rows.lower.gt(rows.upper).any()

    def test_features_along_one_line_span_one_direction(self):
        rng = np.random.default_rng(1)
        a = rng.standard_normal(6)
        design = toy(30)
        x = planted(design, {"f0": 2 * a, "f1": a, "f0^f1": 0.5 * a}, rng, d=6)
        number = geometry.gain_share(geometry.moments(x, design, np.arange(30)), "f0^f1")
        assert number.estimate == pytest.approx(1, abs=0.05)

    def test_two_factors_have_three_dichotomies_and_no_split_for_their_xor(self):
        rows = all_rows(np.random.default_rng(0).standard_normal((36, 4)), toy(9))
        assert "3 balanced dichotomies" in rows[rows.score == "shattering_dimensionality"].note.item()
        assert set(rows[rows.score == "ccgp"].target) == {"f0", "f1", "f0|f1", "f1|f0"}

    def test_incomplete_items_say_so(self):
        world = statements.World(
            items={"cities": tuple((f"city{i}", f"country{i % 6}") for i in range(24))},
            name_pairs=tuple((f"Ann{i}", f"Bob{i}") for i in range(8)),
            suffix_pairs=(),
        )
        rax = statements.rax("rax", {}, world)
        rows = all_rows(planted(rax, {"negated": 2 * np.ones(6)}, np.random.default_rng(0), d=6), rax)
        exact_ = rows[rows.probe == "geometry"]
        assert exact_.note.str.contains("incomplete items").all()
        assert "variance_share" not in set(rows.score)
        assert exact_[(exact_.target == "negated") & (exact_.score == "salience")].lower.item() > 0.3

    def test_what_the_layout_does_not_determine(self):
        # f1 is constant within items: no contrast of it, nor of its XOR with nothing else changing.
        cell_of = np.array([0, 1, 0, 1, 2, 3, 2, 3])
        texts = [4 * item + cell_of[4 * (item % 2) + k] for item in range(12) for k in (0, 1)]
        design = toy(12, 2, texts=texts)
        rows = exact(np.random.default_rng(0).standard_normal((len(texts), 3)), design)
        assert rows["f1", "salience"]["note"].endswith(geometry.UNDETERMINED)
        assert np.isnan(rows["f1", "salience"]["estimate"])
        assert rows["f0", "salience"]["estimate"] == rows["f0", "salience"]["estimate"]

    def test_unbalanced_cells_are_weighted_equally_and_say_so(self):
        design = toy(9, 2, texts=[i for i in range(72) if i % 8 != 1], repeats=2)
        rng = np.random.default_rng(0)
        rows = exact(planted(design, {"f0": np.ones(4), "f1": np.ones(4)}, rng, noise=0.01, d=4), design)
        assert "equally weighted" in rows["f0", "salience"]["note"]
        assert abs(rows["f0^f1", "interaction_ratio"]["estimate"]) < 1e-3

    def test_too_few_units(self):
        rows = exact(np.random.default_rng(0).standard_normal((8, 3)), toy(2))
        assert all(np.isnan(row["estimate"]) and row["note"] == geometry.FEW for row in rows.values())

    def test_rounding_is_not_an_effect(self):
        design = toy(12, 2)
        rng = np.random.default_rng(0)
        x = planted(design, {"f0": np.ones(4)}, rng, noise=0, d=4) * 100
        x = x + signs(design, "f1")[:, None] * 1e-5
        rows = exact(x.astype(np.float32), design)
        assert rows["f0^f1", "interaction_ratio_b"]["note"] == geometry.NO_BASIC

    def test_pairs_closed_under_xor_are_flagged(self, factorial):
        assert designs.closed_under_xor(factorial, "match^negated") == "closed under XOR: negated ^ match = truth"
        assert designs.closed_under_xor(factorial, "truth") == "closed under XOR: negated ^ match = truth"
        for target in ("negated", "speaker^negated", "speaker^negated^match"):
            assert designs.closed_under_xor(factorial, target) == ""
        x = np.random.default_rng(0).standard_normal((len(factorial.texts), 4))
        for row in geometry.exact_rows(x, factorial, 0.95, 0, SITE):
            named = row["target"] in ("negated^match", "negated|match", "match|negated")
            assert row["note"].startswith("closed under XOR: negated ^ match = truth") == named
