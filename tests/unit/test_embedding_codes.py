"""Sparse codes: scikit-learn's pursuit and dictionary learning as oracles, planted dictionaries, the trivial one."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import DictionaryLearning
from sklearn.linear_model import orthogonal_mp

from counterprobe import embedding_codes, tables


def planted(seed=0, rows=150, width=16, atoms=24, k=2, noise=0.0):
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((atoms, width))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    codes = np.zeros((rows, atoms))
    for row in codes:
        row[rng.choice(atoms, k, replace=False)] = rng.uniform(1, 2, k) * rng.choice([-1, 1], k)
    return torch.tensor(codes @ directions + noise * rng.standard_normal((rows, width))), torch.tensor(directions)


def error(x, coded):
    return float((x - coded).square().sum() / x.square().sum())


@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_pursuit_is_scikit_learns(k):
    x, atoms = planted(k=4, noise=0.1)
    slow = torch.tensor(orthogonal_mp(atoms.T.numpy(), x.T.numpy(), n_nonzero_coefs=k).reshape(len(atoms), -1).T)
    ours = embedding_codes.Code(atoms, *embedding_codes.pursue(x, atoms, k)).rows()
    assert error(x, ours) == pytest.approx(error(x, slow @ atoms), rel=1e-6)
    assert torch.allclose(ours, slow @ atoms, atol=1e-8)


def test_a_learned_dictionary_is_as_good_as_scikit_learns():
    x, _ = planted(rows=100, atoms=20, noise=0.05)
    found = embedding_codes.best(x, torch.ones(len(x)).double(), 20, 2, 40, range(6))
    slow = DictionaryLearning(
        20, alpha=0.2, max_iter=30, transform_algorithm="omp", transform_n_nonzero_coefs=2, random_state=0
    ).fit(x.numpy())
    theirs = torch.tensor(slow.transform(x.numpy()) @ slow.components_)
    assert error(x, found.rows()) <= error(x, theirs) + 1e-3
    assert torch.allclose(found.atoms.norm(dim=1), torch.ones(20).double())


def test_planted_directions_are_coded_better_than_their_covariance_and_frequent_rows_first():
    x, _ = planted(rows=400)
    rng = np.random.default_rng(1)
    gaussian = torch.tensor(rng.multivariate_normal(np.zeros(16), np.cov(x.T.numpy()), size=400))
    one = torch.ones(400).double()
    a, b = (
        error(m, embedding_codes.learn(m, one, 24, 2, 25, torch.Generator().manual_seed(0)).rows())
        for m in (x, gaussian)
    )
    assert a < 0.6 * b
    frequent = torch.where(torch.arange(400) < 30, 1000.0, 1.0).double()
    weighed = embedding_codes.learn(gaussian, frequent, 24, 2, 25, torch.Generator().manual_seed(0)).rows()
    plain = embedding_codes.learn(gaussian, one, 24, 2, 25, torch.Generator().manual_seed(0)).rows()
    assert error(gaussian[:30], weighed[:30]) < 0.5 * error(gaussian[:30], plain[:30])


def test_an_atom_a_token_codes_everything_and_more_atoms_than_tokens_are_left_out():
    x, _ = planted(rows=40)
    settings = {"atoms": [1, 3], "k": [1, 2], "iterations": 3, "starts": 2, "seed": 0}
    site = tables.NOT_APPLICABLE | {
        "model": "m",
        "revision": "main",
        "step": -1,
        "weights": "trained",
        "design": "none",
    }
    frequency = np.r_[0.0, np.ones(39)]
    table = tables.frame(embedding_codes.code_rows(x.numpy(), frequency, settings, 0.95, site)).set_index("probe")
    assert set(table.index) == {"atoms_16_k_1", "atoms_16_k_2", "bound"}
    assert table.estimate["bound"] < 1e-12
    assert 0 < table.estimate["atoms_16_k_2"] < table.estimate["atoms_16_k_1"] < 1
    assert (table.lower.dropna() <= table.estimate[table.lower.notna()]).all()
    assert table.n_groups["bound"] == 39


def test_the_error_of_the_share_is_the_jackknifes():
    x, atoms = planted(rows=80, noise=0.3)
    coded = embedding_codes.Code(atoms, *embedding_codes.pursue(x, atoms, 1)).rows()
    one = torch.ones(80).double()
    share, found = embedding_codes.unexplained(x, coded, one)
    without = [embedding_codes.unexplained(x, coded, one.index_fill(0, torch.tensor([i]), 0.0))[0] for i in range(80)]
    assert share == pytest.approx(error(x, coded))
    assert found == pytest.approx(np.sqrt(79 / 80 * np.square(np.array(without) - np.mean(without)).sum()), rel=0.05)
