import numpy as np
import pytest
import torch

from counterprobe import superposition_reading
from counterprobe.superposition_inputs import paired_texts
from counterprobe.superposition_training import generator

CELLS = paired_texts(4, 1.0, 1, "inputs", generator(0)).cells


def activations(interaction, items=300, d=12, noise=0.3, scale=1.0):
    """Additive in four random directions, and `interaction` times a fifth for the XOR of factors 0 and 1."""
    draws = generator(9)
    directions = torch.randn(5, d, generator=draws)
    directions = directions / directions.norm(dim=1, keepdim=True)
    signs = 2 * CELLS.float() - 1
    mean = signs @ directions[:4] + interaction * (signs[:, :1] * signs[:, 1:2]) @ directions[4:]
    return scale * (mean + noise * torch.randn(items, 16, d, generator=draws))


def read(x, dichotomies=16):
    controls = superposition_reading.controls(dichotomies)
    return superposition_reading.read(x, CELLS, controls, penalty=1e-3, rng=np.random.default_rng(0))


def test_an_additive_representation_has_no_xor():
    readings = read(activations(0.0))
    assert readings["feature"]["accuracy"] > 0.95
    for pair in superposition_reading.ALL_PAIRS:
        reading = readings[f"{pair[0]}^{pair[1]}"]
        assert abs(reading["accuracy"] - 0.5) < 0.04
        assert abs(reading["interaction_ratio"]) < 0.01
        assert abs(reading["shuffled"] - 0.5) < 0.04


def test_a_planted_xor_is_read_alone_selectively_and_whatever_the_scale():
    for scale in (1.0, 100.0):
        readings = read(activations(0.5, scale=scale))
        planted, other = readings["0^1"], readings["0^2"]
        assert planted["accuracy"] > 0.85
        assert planted["worst_cell"] > 0.8
        assert planted["selectivity"] > 0.25
        assert other["accuracy"] < 0.55
        # δ = 4 · interaction and d = 2, so the ratio of squares is (4 · .5)² / 2² = 1.
        assert planted["interaction_ratio"] == pytest.approx(1.0, rel=0.05)
        assert abs(other["interaction_ratio"]) < 0.02


def test_controls_are_orthogonal_to_the_target_and_the_basic_factors():
    signs = 2 * CELLS.numpy().astype(int) - 1
    for (i, j), labels in superposition_reading.controls(20).items():
        assert labels.shape == (16, 20)
        values = 2 * labels.astype(int) - 1
        assert not (signs.T @ values).any()
        assert not ((signs[:, i] * signs[:, j]) @ values).any()
        assert not values.sum(axis=0).any()


def test_squared_norms_are_unbiased():
    x = activations(0.25, items=4000, noise=1.0)
    norms = superposition_reading.interactions(x, CELLS, [(0,), (0, 1), (2, 3)])
    assert norms[0,] == pytest.approx(4.0, rel=0.05)
    assert norms[0, 1] == pytest.approx(1.0, rel=0.1)
    assert abs(norms[2, 3]) < 0.03


def test_a_feature_without_a_direction_has_no_ratio():
    x = torch.randn(40, 16, 3, generator=generator(1))
    x = x - x.mean(dim=1, keepdim=True)
    ratios = superposition_reading.interaction_ratios(torch.zeros_like(x), CELLS, [(0, 1)])
    assert np.isnan(ratios[0, 1])
