"""The verdicts on planted activations: few draws against binomial bounds, and networks built by hand."""

import numpy as np
import pytest
import torch
from scipy import stats

from counterprobe import calibration, planted_activations, superposition_redundancy, verdicts
from counterprobe.superposition_training import generator

SPEC = {
    "calibration": {
        "draws": 60,
        "power_draws": 20,
        "items": 120,
        "texts": 16,
        "carriers": 16,
        "width": 128,
        "seeds": 3,
        "nulls": 39,
        "margins": {"carriers": 0.1, "items": 0.05, "use": 0.1},
        "effects": {"decodable": [0, 1.5], "decodable_carriers": [0, 2], "learned": [0, 5], "used": [0, 0.6]},
        "seed": 0,
    },
    "probes": {
        "penalties": [0.001, 0.01, 0.1],
        "outer_folds": 4,
        "inner_folds": 3,
        "dichotomies": 64,
        "seed": 0,
    },
    "statistics": {"resamples": 1000, "confidence": 0.95, "sign_flips": 1000},
}
SMALL = SPEC | {"calibration": SPEC["calibration"] | {"items": 48, "width": 48, "draws": 3, "power_draws": 3}}


def rate(table, score, revision="effect-0", protocol=None):
    row = table[(table.score == score) & (table.revision == revision)]
    row = row if protocol is None else row[row.protocol == protocol]
    [value] = row.estimate
    return value


@pytest.mark.slow
@pytest.mark.parametrize("family", calibration.NULLS)
def test_wrong_verdicts_are_no_more_than_one_in_twenty(family):
    table = calibration.calibrate(SPEC, family)
    draws = SPEC["calibration"]["draws"]
    # What a rate of 5% exceeds once in a thousand times.
    most = stats.binom.isf(1e-3, draws, 0.05) / draws
    for verdict in calibration.WRONG[family]:
        assert rate(table, f"called_{verdict}", protocol="none" if verdict == "used" else "carriers") <= most
    if family in ("mixing", "seeds"):
        assert rate(table, "called_decodable") == 1
    if family == "look_ups":
        assert rate(table, "called_decodable", protocol="items") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("curve", "verdict", "effect"),
    [
        ("decodable", "decodable", 1.5),
        ("decodable_carriers", "decodable", 2),
        ("learned", "learned", 5),
        ("used", "used", 0.6),
    ],
)
def test_large_effects_are_found(curve, verdict, effect):
    table = calibration.calibrate(SPEC, f"power_{curve}")
    assert rate(table, f"called_{verdict}", f"effect-{effect:g}") >= 0.9
    assert rate(table, f"called_{verdict}") <= 0.2
    assert 0 < rate(table, f"effect_at_90_{verdict}", "all") <= effect


def test_tables_of_a_family_and_of_a_curve_have_every_rate_with_its_interval():
    table = calibration.calibrate(SMALL, "power_used")
    called = table[table.score.str.startswith("called_")]
    assert set(called.score) == {"called_used", "called_not_used"}
    assert set(called.revision) == {"effect-0", "effect-0.6"}
    assert (called.lower <= called.estimate).all()
    assert (called.estimate <= called.upper).all()
    assert table.equals(calibration.calibrate(SMALL, "power_used"))
    family = calibration.calibrate(SMALL, "additive")
    assert set(family[family.level == verdicts.ALPHA].score) == {"called_decodable", "called_learned"}


def test_the_bar_is_sixty_four_of_a_thousand():
    assert calibration.most_false_positives(1000) == 64


@pytest.mark.parametrize(
    ("hits", "expected"),
    [([0, 0, 100], 0.9 * 1 + 1), ([0, 95, 100], 90 / 95), ([91, 95, 100], 0), ([0, 10, 20], np.nan)],
)
def test_the_smallest_effect_is_where_power_crosses_ninety_percent(hits, expected):
    found = calibration.smallest_effect(np.array([0.0, 1.0, 2.0]), np.array(hits), 100)
    assert found["estimate"] == pytest.approx(expected, nan_ok=True)
    assert (found["note"] == "") == np.isfinite(expected)
    if np.isfinite(found["upper"]):
        assert found["lower"] <= found["estimate"] <= found["upper"]


@pytest.fixture(scope="module")
def on():
    return calibration.bench(SPEC | {"calibration": SPEC["calibration"] | {"items": 48, "width": 48}})


class TestHandBuilt:
    """One ReLU computes speaker ⊕ negated and writes it along a direction; its read-out reads that, or something else."""

    def verdicts(self, on, seed, **network):
        rng = np.random.default_rng(seed)
        made = planted_activations.hand_built(on.design, on.width, rng, **network)
        rungs = [
            calibration.accuracy_of(
                planted_activations.hand_built(on.design, on.width, rng, uses=True, computes=False).stream, on
            )
            for _ in range(5)
        ]
        read = calibration.read_evidence(made.stream, on, rng, selective=True, rungs={"init": np.array(rungs)})
        use = calibration.use_evidence(made.stream, made.readout, on, rng)
        return verdicts.read(read, verdicts.read_legs(read)), verdicts.use(use), use

    @pytest.mark.parametrize("seed", [0, 1])
    def test_computed_and_used(self, on, seed):
        read, use, _ = self.verdicts(on, seed, uses=True)
        assert read.verdict == verdicts.LEARNED
        assert use.verdict == verdicts.USED
        assert verdicts.of_the_model(read.verdict, use.verdict) == "model feature: learned and used"

    @pytest.mark.parametrize("seed", [0, 1])
    def test_computed_and_answered_from_elsewhere(self, on, seed):
        read, use, evidence = self.verdicts(on, seed, uses=False)
        assert read.verdict == verdicts.LEARNED
        assert use.verdict == verdicts.NOT_USED
        assert abs(evidence.effect.estimate) < 0.1

    def test_not_computed(self, on):
        read, _, _ = self.verdicts(on, 2, uses=True, computes=False)
        assert read.verdict in (verdicts.ABSENT, verdicts.INCONCLUSIVE)

    def test_the_neuron_computes_it(self, on):
        rng = np.random.default_rng(0)
        made = planted_activations.hand_built(on.design, on.width, rng, uses=True)
        along = made.stream @ made.written
        label = planted_activations.half_sign(on.design, planted_activations.TARGET)[:, 0] > 0
        assert (along[label].mean() - along[~label].mean()) / along[label].std() > 1


class TestRandomNetworks:
    """k signs, r copies of each, ten random residual blocks: nothing is trained, and any XOR may be readable."""

    def read(self, on, k, copies, seed):
        def network(key):
            inputs = planted_activations.signs(on.design, k, np.random.default_rng([seed, key]))
            stream = torch.tensor(inputs, dtype=torch.float32)
            return superposition_redundancy.random_network(stream, copies, 10, generator(seed, key, k)).numpy()

        rungs = {"init": np.array([calibration.accuracy_of(network(key), on) for key in range(1, 6)])}
        made = calibration.read_evidence(network(0), on, np.random.default_rng(seed), selective=True, rungs=rungs)
        return verdicts.read(made, verdicts.read_legs(made)), made

    def test_redundant_inputs_make_an_xor_decodable_and_not_learned(self, on):
        found = [self.read(on, 8, 16, seed)[0] for seed in range(4)]
        assert all(verdict.verdict in (verdicts.DECODABLE, verdicts.LEARNED) for verdict in found)
        assert sum(verdict.verdict == verdicts.LEARNED for verdict in found) <= 1
        assert all("init" in verdict.explained_by for verdict in found if verdict.verdict == verdicts.DECODABLE)

    def test_without_redundancy_it_is_not_decodable(self, on):
        for seed in range(3):
            verdict, made = self.read(on, 48, 1, seed)
            assert verdict.verdict in (verdicts.ABSENT, verdicts.INCONCLUSIVE)
            assert made.accuracy.estimate < 0.6
