import numpy as np
import pytest
import torch
from scipy import stats

from counterprobe import superposition_cells, superposition_redundancy
from counterprobe.superposition_training import generator

GRID = np.array([(k, r) for k in (4, 8, 16, 32, 64) for r in (1, 2, 4, 8)], float)


@pytest.mark.parametrize("gamma", [1.0, 1.6, 2.0])
def test_the_exponent_of_a_planted_law_is_found(gamma):
    k, d = GRID[:, 0], GRID.prod(axis=1)
    accuracy = stats.norm.cdf(0.8 + 0.5 * np.log(d / k**gamma))
    assert superposition_redundancy.exponent(k, d, accuracy) == pytest.approx(gamma)
    assert superposition_redundancy.explained(d / k**gamma, accuracy) == pytest.approx(1.0)
    assert superposition_redundancy.explained(d * k, accuracy) < 0.6


def test_floor_and_ceiling_do_not_count():
    k, d = GRID[:, 0], GRID.prod(axis=1)
    accuracy = np.clip(stats.norm.cdf(1.5 + 1.5 * np.log(d / k**1.7)), 0.5, 1)
    assert superposition_redundancy.exponent(k, d, accuracy) == pytest.approx(1.7)
    assert np.isnan(superposition_redundancy.exponent(k, d, np.full(len(k), 0.5)))


def test_a_monotone_fit_is_no_better_than_the_data():
    accuracy = np.array([0.5, 0.9, 0.5, 0.9])
    assert superposition_redundancy.explained(np.array([1.0, 2, 3, 4]), accuracy) == pytest.approx(0.5)
    assert superposition_redundancy.explained(np.array([1.0, 1, 1, 1]), accuracy) == pytest.approx(0.0)


def test_copies_are_copies_and_blocks_are_random():
    draws = generator(3)
    signs = (torch.randint(0, 2, (6, 4), generator=draws) * 2 - 1).float()
    copied = superposition_redundancy.random_network(signs, 3, 0, draws)
    assert torch.equal(copied, torch.cat([signs] * 3, dim=1))
    stream = superposition_redundancy.random_network(signs, 3, 2, draws)
    assert stream.shape == (6, 12)
    assert not torch.allclose(stream, copied)


def test_every_cell_and_seed_is_in_the_table():
    spec = {
        "cells": [[4, 2], [5, 1]],
        "layers": 2,
        "networks": 2,
        "train": 200,
        "test": 100,
        "pairs": 3,
        "penalty": 0.01,
    }
    table = superposition_redundancy.sweep(spec)
    accuracies = table[table.score == "accuracy"]
    assert len(accuracies) == 2 * 2 * 2
    assert (accuracies.n_texts == 100).all()
    # Two cells cannot give an exponent; that is said, not left out.
    gammas = table[table.score == "gamma"]
    assert gammas.reason.str.contains("fewer than four cells").all()
    left_out = table[table.score == "gamma_left_out"]
    assert set(left_out.setting) == {"without k = 4", "without k = 5"}
    cells = superposition_cells.cells(table)
    assert cells[cells.score == "gamma"].excluded.tolist() == [2]
