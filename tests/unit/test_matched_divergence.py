"""Doses at equal divergence where the answer is known, and the interval of one way less the draws of another."""

import numpy as np
import pytest

from counterprobe import matched_divergence, statistics


def test_doses_of_known_curves():
    scale = np.array([0.003, 0.5, 40.0, 1.0, 1.0])
    power = np.array([2.0, 2.0, 2.0, 1.2, 2.0])
    most = np.array([np.inf, np.inf, np.inf, np.inf, 0.05])
    asked = []

    def divergence(dose):
        asked.append(dose)
        raw = scale * dose**power
        return np.where(np.isinf(most), raw, most * -np.expm1(-raw / np.where(np.isinf(most), 1, most)))

    found = matched_divergence.doses_at(divergence, 0.1, 5)
    # The fourth grows otherwise than it is first taken to, the last stays below what is wanted.
    assert found[:3] == pytest.approx((0.1 / scale[:3]) ** 0.5, rel=1e-6)
    assert scale[3] * found[3] ** power[3] == pytest.approx(0.1, rel=0.02)
    assert np.isnan(found[4])
    assert len(asked) == matched_divergence.ROUNDS
    assert np.isnan(matched_divergence.doses_at(lambda dose: np.zeros(2), 0.1, 2)).all()


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
