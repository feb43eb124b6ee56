"""Probes of every target on one store, on representations whose answer is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from counterprobe import designs, probe_controls, probe_grid, splits, statements
from counterprobe.activations import Store

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
PENALTIES = [0.01, 0.1, 1.0]
SETTINGS = {
    "kinds": ["logistic", "mass_mean", "lda"],
    "penalties": PENALTIES,
    "inner_folds": 2,
    "outer_folds": 4,
    "dichotomies": 64,
    "shuffles": 4,
    "control_tasks": 3,
    "seed": 0,
}
SPEC = {
    "probes": SETTINGS,
    "statistics": {"resamples": 300, "confidence": 0.95, "sign_flips": 300},
    "design": {"protocols": ["carriers", "items"]},
    "activations": {"positions": ["period"], "primary_bos": False},
}
CELL = {"model": "m", "revision": "step4", "weights": "trained", "design": "factorial"}


@pytest.fixture(scope="module")
def design():
    world = statements.world({"topics": {"cities": 16, "animals": 16}, "carriers": 8, "seed": 0}, RESOURCES)
    return statements.factorial("factorial", {"blocks": 4, "seed": 0}, world)


@pytest.fixture(scope="module")
def additive(design):
    """A direction for each basic factor and for the needed XOR, one for each item and for each name; no other XOR."""
    rng = np.random.default_rng(0)
    d = 24
    x = rng.standard_normal((len(design.item_names), d))[design.items]
    x = x + rng.standard_normal((2 * 8, d))[2 * design.carriers["speaker"] + design.factors["speaker"]]
    for target in (*design.factors, "negated^match"):
        x = x + np.where(designs.parity(design, target), 1.5, -1.5)[:, None] * rng.standard_normal(d)
    return (x + 0.3 * rng.standard_normal(x.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def store(design, additive, tmp_path_factory):
    """A store of one matrix, and of token embeddings that know the item only."""
    root = tmp_path_factory.mktemp("store")
    tokens = np.random.default_rng(1).standard_normal((len(design.item_names), 24)).astype(np.float32)[design.items]
    np.save(root / "layer.npy", additive)
    np.save(root / "tokens.npy", tokens)
    files = {("kept", 0, "period", False, 0): "layer.npy", ("kept", 0, "period", False, None): "tokens.npy"}
    return Store(root, len(tokens), 24, ("period",), (False,), (0,), (("kept", 0),), files)


@pytest.fixture(scope="module")
def grid(store, design):
    return probe_grid.train(store, design, SPEC, CELL, device="cpu")


def accuracy(scores, target, protocol="carriers", probe="logistic", score="accuracy", layer=0):
    row = scores[
        (scores.target == target)
        & (scores.protocol == protocol)
        & (scores.probe == probe)
        & (scores.score == score)
        & (scores.layer == layer)
    ]
    assert len(row) == 1
    return row.iloc[0]


@pytest.mark.parametrize("target", ["speaker", "negated", "match", "suffix", "negated^match"])
def test_what_is_there_is_read(grid, target):
    for probe in SETTINGS["kinds"]:
        assert accuracy(grid.scores, target, probe=probe).estimate > 0.85


@pytest.mark.parametrize("target", ["speaker^negated", "speaker^match", "match^suffix", "speaker^negated^match"])
def test_what_is_not_there_is_read_at_one_half(grid, target):
    row = accuracy(grid.scores, target)
    assert row.lower <= 0.5 + 0.03
    assert abs(row.estimate - 0.5) < 0.1
    assert accuracy(grid.scores, target, score="worst_cell").lower < 0.5 if target.count("^") == 1 else True


def test_held_out_decisions_are_those_of_scikit_learn(design, additive):
    folds = splits.folds(design, "items", 0, n_folds=4, seed=0)
    labels = designs.parity(design, "negated^match")[:, None]
    held_out = probe_grid.cross_validate(torch.from_numpy(additive), labels, folds, [0.1], "logistic")
    for index, fold in enumerate(folds):
        train = additive[fold.train].astype(np.float64)
        mean, scale = train.mean(0), train.std(0)
        with threadpool_limits(1, user_api="blas"):
            oracle = LogisticRegression(C=1 / (0.1 * len(train)), tol=1e-10, max_iter=5000).fit(
                (train - mean) / scale, labels[fold.train, 0]
            )
        decision = oracle.decision_function((additive[fold.test] - mean) / scale)
        assert np.allclose(held_out.decision[fold.test, 0], decision, rtol=1e-3, atol=1e-3)
        assert (held_out.fold[fold.test] == index).all()


def test_the_penalty_is_the_one_with_most_bits_on_the_inner_folds(design, additive):
    features = torch.from_numpy(additive)
    labels = designs.parity(design, "speaker")[:, None]
    folds = splits.folds(design, "carriers", 2)
    held_out = probe_grid.cross_validate(features, labels, folds, PENALTIES, "logistic")
    for index, fold in enumerate(folds):
        bits = []
        for penalty in PENALTIES:
            inner = [splits.Fold(train, valid, ()) for train, valid in fold.inner]
            alone = [probe_grid.cross_validate(features, labels, [one], [penalty], "logistic") for one in inner]
            bits.append(np.mean([np.nanmean(one.bits) for one in alone]))
        assert held_out.penalties[index, 0] == PENALTIES[int(np.argmax(bits))]


def test_directions_are_in_the_space_of_the_activations(grid, design, additive):
    [directions] = grid.directions.values()
    column = list(designs.targets(design)).index("speaker")
    scores = additive @ directions[:, column].numpy()
    label = designs.parity(design, "speaker")
    assert scores[label].mean() > scores[~label].mean()


def test_exact_inference_agrees_with_what_was_planted(grid):
    rows = grid.scores[grid.scores.probe == "contrast"].set_index(["target", "protocol", "score"]).estimate
    assert rows["negated^match", "items", "p_items"] < 0.01
    assert rows["speaker", "carriers", "p_carriers"] < 0.05
    needless = [
        rows[target, "items", "p_items"] for target in ("match^suffix", "negated^suffix", "negated^match^suffix")
    ]
    assert min(needless) > 0.005
    assert rows["speaker", "items", "interaction"] > 1


def test_label_controls(store, design, grid):
    controls = probe_controls.measure(store, design, SPEC, CELL, device="cpu")
    by = controls.set_index(["control", "representation", "target", "score"]).estimate
    assert abs(by["shuffled", "activations", "speaker", "accuracy"] - 0.5) < 0.05
    assert abs(by["dichotomy", "activations", "negated^match", "accuracy"] - 0.5) < 0.1
    selective = {target: by["dichotomy", "activations", target, "selectivity"] for target in designs.targets(design)}
    assert selective["negated^match"] > 0.3
    assert abs(selective["speaker^match"]) < 0.1
    assert by["none", "additive_surrogate", "negated^match", "accuracy"] < 0.6
    assert by["none", "token_embeddings", "negated^match", "accuracy"] == pytest.approx(0.5, abs=0.03)
    assert by["none", "activations", "negated^match", "bits_beyond_tokens"] > 0.3
    assert by["control_task", "activations", "speaker", "accuracy"] > 0.6


def test_every_fold_chooses_its_own_layer_and_only_by_its_inner_folds():
    n, folds = 12, np.repeat([0, 1], 6)
    done = np.ones((2, 1), bool)

    def layer(value, inner):
        filled = np.full((n, 1), float(value))
        return probe_grid.HeldOut(
            filled, filled, filled, filled, folds, np.array(inner)[:, None], np.full((2, 1), float(value)), done
        )

    chosen = probe_grid.choose_layers([layer(0, [0.1, 0.5]), layer(1, [0.3, 0.2])])
    assert chosen.correct[:, 0].tolist() == [1.0] * 6 + [0.0] * 6
    assert chosen.penalties[:, 0].tolist() == [1, 0]
    assert chosen.inner_bits[:, 0].tolist() == [0.3, 0.5]


def test_the_chosen_layer_has_its_own_row(grid):
    row = accuracy(grid.scores, "speaker", layer=-1)
    assert row.estimate == accuracy(grid.scores, "speaker").estimate
    assert "inner folds" in row.note


def test_a_low_rank_xor_survives_the_erasure_of_its_factors(design, additive):
    delta = probe_controls.delta_removed(torch.from_numpy(additive).double(), design, "negated^match")
    assert 0 <= delta < 0.5


def test_each_dichotomy_is_orthogonal_to_its_target_and_to_the_factors(design):
    labels, members = probe_controls.dichotomy_pool(design, list(designs.targets(design)), SETTINGS)
    signs = np.where(labels, 1, -1)
    for target, columns in members.items():
        assert len(columns) >= 40
        for known in (target, *design.factors, "negated^match"):
            assert not (np.where(designs.parity(design, known), 1, -1) @ signs[:, columns]).any()
