"""Probes on k neurons: rankings and searches against slow ones, scikit-learn and transformer_lens; planted neurons."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score

from counterprobe import designs, planted_activations, probes, sparse_neurons, splits, tables

SETTINGS = {"candidates": 64, "seed": 0}


@pytest.fixture(scope="module")
def design():
    return planted_activations.layout(items=16, carriers=8, texts=16)


@pytest.fixture(scope="module")
def folds(design):
    return splits.folds(design, "carriers", 0, n_folds=4, seed=0)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((240, 20)) @ (np.eye(20) + 0.2 * rng.standard_normal((20, 20)))
    x[:, 3] = np.maximum(x[:, 3], 0)
    y = np.stack([x[:, 3] + x[:, 5] + rng.standard_normal(240) > 0.3, x[:, 7] - x[:, 8] > 0], axis=1)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def test_rankings_are_those_of_scikit_learn(data):
    x, y = data
    statistic = sparse_neurons.f_statistic(x, y)
    information = sparse_neurons.mutual_information(x, y)
    for target in range(2):
        assert np.allclose(statistic[:, target], f_classif(x.numpy(), y[:, target].numpy())[0], rtol=1e-4)
        for neuron in (0, 3, 7):
            edges = np.sort(x[:, neuron].numpy())[np.arange(1, 16) * 240 // 16]
            bins = np.searchsorted(edges, x[:, neuron].numpy(), side="right")
            expected = mutual_info_score(bins, y[:, target].numpy())
            assert float(information[neuron, target]) == pytest.approx(expected, abs=1e-9)


def test_the_l1_ranking_is_the_minimum_that_scikit_learn_finds(data):
    x, y = data
    found = sparse_neurons.l1_coefficients(x, y, share=0.1, steps=2000)
    z = probes.standardise(x).apply(x).double()
    for target in range(2):
        labels = y[:, target].double()
        penalty = 0.1 * float((z.T @ (labels - labels.mean()) / len(z)).abs().max())
        slow = LogisticRegression(
            l1_ratio=1, C=1 / (penalty * len(z)), solver="saga", tol=1e-8, max_iter=20_000, random_state=0
        ).fit(z.numpy(), labels.numpy())
        assert np.allclose(found[:, target], np.abs(slow.coef_[0]), atol=5e-4)


def residual(x, y, columns):
    design = np.column_stack([np.ones(len(x)), x[:, list(columns)]])
    return float(((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2).sum())


def test_searches_are_those_by_brute_force(data):
    x, y = data
    found = sparse_neurons.best(x, y, 4, 20)
    for target in range(2):
        values, labels = x.numpy().astype(float), y[:, target].numpy().astype(float)
        for size in (1, 2):
            subsets = itertools.combinations(range(20), size)
            slow = min(subsets, key=lambda columns: residual(values, labels, columns))
            assert set(found[size][:, target].tolist()) == set(slow)
        kept = found[2][:, target].tolist()
        for size in (3, 4):
            rest = [n for n in range(20) if n not in kept]
            kept = [*kept, min(rest, key=lambda n: residual(values, labels, [*kept, n]))]
            assert found[size][:, target].tolist() == kept


def test_constant_and_equal_neurons_are_survived(data):
    x, y = data
    doubled = torch.cat([x, x[:, :3], torch.zeros(len(x), 2)], dim=1)
    for ranking in ("mean_difference", "f_statistic", "mutual_information", "l1"):
        score = getattr(sparse_neurons, "l1_coefficients" if ranking == "l1" else ranking)(doubled, y)
        assert torch.isfinite(score).all()
        assert (score[-2:].abs() < 1e-6).all()
    found = sparse_neurons.best(doubled, y, 3, 25)
    assert all(len(set(found[3][:, target].tolist())) == 3 for target in range(2))


def test_one_neuron_is_enough_for_a_feature_that_one_neuron_tells(design, folds):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((len(design.texts), 30))
    x[:, 17] += 6 * designs.parity(design, "speaker")
    labels = np.stack([designs.parity(design, name) for name in ("speaker", "negated")], axis=1)
    names = ["mean_difference", "f_statistic", "mutual_information", "l1", "best", "random"]
    found = sparse_neurons.sparse(torch.tensor(x, dtype=torch.float32), labels, folds, [1, 2], names, 0.01, SETTINGS)
    for (ranking, _), correct in found.items():
        accuracy = correct.mean(axis=0)
        assert ranking == "random" or accuracy[0] > 0.98
        assert abs(accuracy[1] - 0.5) < 0.12
    assert found["random", 1].mean(axis=0)[0] < 0.8


def test_a_pair_that_tells_only_together_is_found_by_search_alone(design, folds):
    """y = sign(u − v) with a large common part: neither neuron alone says anything."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((len(design.texts), 12))
    y = designs.parity(design, "speaker")
    common = 20 * rng.standard_normal(len(y))
    x[:, 2], x[:, 9] = common + np.where(y, 1, -1) + 0.2 * x[:, 2], common + 0.2 * x[:, 9]
    found = sparse_neurons.sparse(
        torch.tensor(x, dtype=torch.float32), y[:, None], folds, [2], ["best", "f_statistic"], 1e-4, SETTINGS
    )
    assert found["best", 2].mean() > 0.95


def test_rows_have_a_level_an_interval_and_dichotomies(design, folds):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.standard_normal((len(design.texts), 12)), dtype=torch.float32)
    spec = {
        "neurons": SETTINGS | {"k": [1, 4, 64], "rankings": ["mean_difference", "best"], "dichotomies": 64},
        "probes": {"penalties": [0.01], "seed": 0},
        "statistics": {"resamples": 100, "confidence": 0.95},
    }
    site = tables.NOT_APPLICABLE | {"model": "m", "revision": "main", "step": -1, "weights": "trained"}
    site |= {"design": "f", "layer": 1, "representation": "neurons"}
    table = tables.frame(sparse_neurons.block_rows(x, design, folds, spec, site, trained=True))
    assert set(table.probe) == {f"{ranking}_{k}" for ranking in ("mean_difference", "best") for k in (1, 4)} | {
        "dense_12"
    }
    selectivity = table[table.score == "selectivity"]
    assert len(selectivity)
    assert (selectivity.lower <= selectivity.upper).all()
    assert (table[(table.score == "accuracy") & (table.control == "none")].estimate - 0.5).abs().max() < 0.2


def test_selection_and_score_are_those_of_transformer_lens():
    """One split, made there: the same neurons and, at equal penalty, the same decisions."""
    sparse_probing = pytest.importorskip("transformer_lens.tools.analysis.sparse_probing")
    rng = np.random.default_rng(3)
    x = torch.tensor(rng.standard_normal((400, 40)) * rng.uniform(0.5, 2, 40), dtype=torch.float32)
    y = torch.tensor((x[:, 4] + x[:, 9] + x[:, 30] + torch.tensor(rng.standard_normal(400))).numpy() > 0.2)
    theirs = sparse_probing.fit_sparse_probe(
        x, y, k=5, preprocess="standardize", class_weight=None, l2_strength=0.02, std_floor=0.0
    )
    rows = theirs.train_indices
    order = sparse_neurons.order("mean_difference", x[rows], y[rows, None], 5, 40, rng)
    assert order[:5, 0].tolist() == theirs.selected_features.tolist()
    ours = probes.logistic(x[rows][:, order[:5, 0]], y[rows, None], 0.02, tol=1e-6)
    scored = probes.score_texts(ours, x[theirs.test_indices][:, order[:5, 0]], y[theirs.test_indices, None])
    assert float(scored.correct.mean()) == pytest.approx(theirs.metrics.accuracy, abs=0.01)
