"""Doses at equal divergence where the answer is known, and the interval of one way less the draws of another."""

import numpy as np
import pytest

from counterprobe import matched_divergence, statistics


def test_doses_of_known_curves():
    scale = np.array([0.003, 0.5, 40.0, 1.0, 1e-4])
    power = np.array([2.0, 2.0, 2.0, 1.2, 11.0])
    most = np.array([np.inf, np.inf, np.inf, 0.05, np.inf])
    asked = []

    def divergence(dose):
        asked.append(dose)
        return np.minimum(scale * dose**power, most)

    found = matched_divergence.doses_at(divergence, 0.1, 5)
    # Squares, one that stays below what is wanted, and one that is steep.
    assert found[:3] == pytest.approx((0.1 / scale[:3]) ** 0.5, rel=0.01)
    assert np.isnan(found[3])
    assert scale[4] * found[4] ** power[4] == pytest.approx(0.1, rel=0.05)
    assert len(asked) == matched_divergence.ROUNDS + 1


def test_a_jump_over_what_is_wanted_and_moves_that_disturb_nothing_have_no_dose():
    assert np.isnan(matched_divergence.doses_at(lambda dose: np.where(dose < 2, 1e-6, 5.0), 0.1, 2)).all()
    asked = []
    assert np.isnan(matched_divergence.doses_at(lambda dose: asked.append(dose) or np.zeros(2), 0.1, 2)).all()
    assert len(asked) == 1


def test_the_difference_is_paired_and_counts_the_draws():
    rng = np.random.default_rng(0)
    texts, k = 60, 24
    shared = 5 * rng.standard_normal(texts)
    weights = statistics.two_way_weights(np.arange(texts), None, 400, rng)

    def interval(spread):
        draws = shared + spread * rng.standard_normal((k, 1)) + 0.01 * rng.standard_normal((k, texts))
        found = matched_divergence.difference(shared + 1, draws, weights, 0.95, texts, np.random.default_rng(1))
        assert found.estimate[0] == pytest.approx(1 + shared.mean() - draws.mean(), abs=1e-5)
        assert found.lower[0] <= found.estimate[0] <= found.upper[0]
        return float(found.upper[0] - found.lower[0])

    # What texts share cancels, however much they scatter; what the draws scatter does not.
    assert interval(0.0) < 0.05
    assert interval(2.0) == pytest.approx(2 * 1.96 * 2 / np.sqrt(k), rel=0.4)
