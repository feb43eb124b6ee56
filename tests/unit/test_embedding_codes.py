"""Sparse codes: scikit-learn's pursuit and dictionary learning and basis pursuit as oracles, planted dictionaries and
circles, the trivial dictionary."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from sklearn.decomposition import PCA, DictionaryLearning
from sklearn.linear_model import orthogonal_mp

from counterprobe import embedding_codes, tables

SITE = tables.NOT_APPLICABLE | {
    "model": "m",
    "revision": "main",
    "step": -1,
    "weights": "trained",
    "design": "none",
}


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
    frequency = np.r_[0.0, np.ones(39)]
    table = tables.frame(embedding_codes.code_rows(x.numpy(), frequency, settings, 0.95, SITE))
    table = table[table.score == "fvu"].set_index("probe")
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


# --- basis pursuit --------------------------------------------------------------------------------------------


def basis_pursuit(atoms, row):
    """The code of least absolute sum that gives a row exactly (Chen, Donoho and Saunders 1998), as a linear programme."""
    m = len(atoms)
    columns = atoms.T.numpy()
    found = linprog(np.ones(2 * m), A_eq=np.hstack([columns, -columns]), b_eq=row.numpy(), method="highs")
    return found.x[:m] - found.x[m:]


def test_the_pursuit_finds_what_basis_pursuit_finds():
    x, atoms = planted(rows=25, width=40, atoms=60, k=2)
    chosen, coefficients = embedding_codes.pursue(x, atoms, 2)
    ours = torch.zeros(25, 60, dtype=torch.float64).scatter(1, chosen, coefficients).numpy()
    slow = np.stack([basis_pursuit(atoms, row) for row in x])
    assert ((np.abs(slow) > 1e-7).sum(axis=1) == 2).all()
    assert np.allclose(ours, slow, atol=1e-7)


# --- groups and the map ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "width"), [(0, 2), (1, 5)])
def test_circularity_is_one_on_a_circle_none_on_a_line_and_between_for_a_gaussian(seed, width):
    rng = np.random.default_rng(seed)
    plane = np.linalg.qr(rng.standard_normal((width, 2)))[0].T
    angle = 2 * np.pi * np.arange(200) / 200
    circle = 3 * np.stack([np.cos(angle), np.sin(angle)], axis=1) @ plane + rng.standard_normal(width)
    line = rng.standard_normal((200, 1)) @ plane[:1]
    gaussian = rng.standard_normal((20_000, 2)) @ plane
    assert embedding_codes.circularity(torch.tensor(circle)) == pytest.approx(1, abs=1e-9)
    assert embedding_codes.circularity(torch.tensor(line)) < 1e-6
    # A Rayleigh variable's mean is √(π/2), its variance 2 − π/2.
    expected = 1 - np.sqrt((2 - np.pi / 2) / (np.pi / 2))
    assert embedding_codes.circularity(torch.tensor(gaussian)) == pytest.approx(expected, abs=0.02)


def test_a_planted_circle_is_the_most_circular_group():
    """40 tokens on a circle in a plane with two atoms of its own and their neighbours, 60 elsewhere."""
    rng = np.random.default_rng(0)
    atoms = np.linalg.qr(rng.standard_normal((16, 16)))[0][:8]
    atoms[2:4] = [(atoms[0] + atoms[1]) / np.sqrt(2), (atoms[0] - atoms[1]) / np.sqrt(2)]
    angle = 2 * np.pi * np.arange(40) / 40
    on = np.stack([np.cos(angle), np.sin(angle)], axis=1) @ atoms[:2]
    off = rng.standard_normal((60, 4)) @ atoms[4:]
    x, atoms = torch.tensor(np.concatenate([on, off])), torch.tensor(atoms)
    code = embedding_codes.Code(atoms, *embedding_codes.pursue(x, atoms, 2))
    found = {tuple(sorted(g.tolist())): embedding_codes.circularity(p) for g, p in embedding_codes.groups(code, ONES)}
    assert max(found, key=found.get) == (0, 1, 2, 3)
    assert found[0, 1, 2, 3] > 0.95
    assert max(value for group, value in found.items() if group != (0, 1, 2, 3)) < 0.8
    rare = torch.where(torch.arange(100) < 40, 0.0, 1.0).double()
    assert (0, 1, 2, 3) not in {tuple(sorted(g.tolist())) for g, _ in embedding_codes.groups(code, rare)}


ONES = torch.ones(100).double()


def test_the_map_is_a_principal_component_analysis_and_its_names_are_the_tokens_that_use_an_atom():
    x, atoms = planted(rows=100, atoms=12, k=1)
    code = embedding_codes.Code(atoms, *embedding_codes.pursue(x, atoms, 1))
    names = [None, *(f"t{i}" for i in range(1, 100))]
    places, tokens, named = zip(*embedding_codes.atom_map(code, ONES, names), strict=True)
    signs = np.array([np.sign(float(code.coefficients[code.chosen == atom].sum())) for atom in range(12)])
    slow = PCA(2).fit_transform(atoms.numpy() * signs[:, None])
    assert np.allclose(np.abs(places), np.abs(slow), atol=1e-8)
    assert sum(tokens) == 99
    largest = {atom: (code.coefficients[:, 0] * float(signs[atom]) * (code.chosen[:, 0] == atom)) for atom in range(12)}
    for atom, name in enumerate(named):
        assert name.split(", ")[0] == f"t{int(largest[atom][1:].argmax()) + 1}"


def test_rows_of_the_map_and_of_groups_stand_where_tokens_have_names():
    x, _ = planted(rows=100)
    settings = {"atoms": [0.5, 1], "k": [1, 2, 4], "iterations": 3, "starts": 1, "seed": 0}
    names = [f"t{i}" for i in range(100)]
    table = tables.frame(embedding_codes.code_rows(x.numpy(), np.ones(100), settings, 0.95, SITE, names))
    atoms = table[table.score.isin(["pc1", "pc2"])]
    assert set(atoms.target) == {"atoms_16_k_2"}
    assert len(atoms) == 2 * 16
    assert set(table[table.score == "circularity"].probe) == {
        "atoms_8_k_2",
        "atoms_8_k_4",
        "atoms_16_k_2",
        "atoms_16_k_4",
    }
    assert table[table.score == "circularity"].estimate.between(0, 1).all()
    bare = tables.frame(embedding_codes.code_rows(x.numpy(), np.ones(100), settings, 0.95, SITE))
    assert set(bare.score) == {"fvu", "circularity"}
