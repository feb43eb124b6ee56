"""The swap and its nulls, against direct computation."""

import numpy as np
import pytest

from counterprobe import coordinate_swaps, designs, planted_activations, probe_controls

TARGET = planted_activations.TARGET


@pytest.fixture(scope="module")
def made():
    design = planted_activations.layout(items=16, carriers=8, texts=16)
    rng = np.random.default_rng(0)
    x = planted_activations.background(design, 24, rng).astype(np.float64)
    x += planted_activations.effect(design, TARGET, 3 * planted_activations.unit(24, rng))
    pool, _ = probe_controls.dichotomy_pool(design, [TARGET], {"dichotomies": 64, "seed": 0})
    rows = np.flatnonzero(design.blocks < 2)
    return design, x, rows, coordinate_swaps.directions(x, design, rows, TARGET, pool, 39, rng)


def test_the_effect_is_the_difference_of_the_class_means(made):
    design, x, rows, fitted = made
    labels = designs.parity(design, TARGET)
    expected = np.mean([x[i] for i in rows if labels[i]], axis=0) - np.mean(
        [x[i] for i in rows if not labels[i]], axis=0
    )
    assert fitted.effect == pytest.approx(expected, abs=1e-6)


def test_its_own_part_is_outside_every_other_effect(made):
    design, x, rows, fitted = made
    for name, labels in designs.targets(design).items():
        effect = x[rows][labels[rows]].mean(axis=0) - x[rows][~labels[rows]].mean(axis=0)
        if name != TARGET:
            assert abs(fitted.own @ effect) < 1e-8 * np.linalg.norm(effect) * np.linalg.norm(fitted.effect)
    # What was taken away lies in their span, so both have the same part outside it.
    assert fitted.own @ fitted.effect == pytest.approx(fitted.own @ fitted.own)


def test_nulls_are_as_long_and_avoid_the_named_effects(made):
    design, x, rows, fitted = made
    assert {kind: len(moves) for kind, moves in fitted.nulls.items()} == {"within-cell": 39, "dichotomies": 39}
    for moves in fitted.nulls.values():
        assert np.linalg.norm(moves, axis=1) == pytest.approx(np.linalg.norm(fitted.effect))
        for name in [*design.factors, *design.needed]:
            labels = designs.parity(design, name)[rows]
            effect = x[rows][labels].mean(axis=0) - x[rows][~labels].mean(axis=0)
            assert np.abs(moves @ effect).max() < 1e-8 * np.linalg.norm(effect) * np.linalg.norm(fitted.effect)


def test_within_cell_draws_have_the_covariance_within_cells():
    design = planted_activations.layout(items=16, carriers=8, texts=16)
    rng = np.random.default_rng(1)
    scales = np.ones(24)
    scales[[0, 2]] = 5, 0.1
    x = rng.standard_normal((len(design.texts), 24)) * scales
    # Far apart by the target itself in the third dimension: the total covariance would be full of it.
    x[:, 2] += 50 * planted_activations.half_sign(design, TARGET)[:, 0]
    # Named effects of their own, so that it is not the noise of effects of 0 that is projected out.
    for place, name in enumerate([*design.factors, *design.needed]):
        x[:, 10 + place] += 1000 * planted_activations.half_sign(design, name)[:, 0]
    moves = coordinate_swaps.directions(
        x, design, np.arange(len(x)), TARGET, np.zeros((len(x), 0), bool), 400, rng
    ).nulls["within-cell"]
    shares = (moves**2).mean(axis=0)
    assert shares[0] > 8 * shares[3:10].mean()
    assert shares[2] < 0.05 * shares[3:10].mean()
    assert shares[10:15].max() < 0.05 * shares[3:10].mean()


def test_a_linear_read_out_of_the_coordinate_gets_all_of_its_gap_from_it(made):
    design, x, rows, fitted = made
    labels = designs.parity(design, TARGET)
    reading = fitted.effect

    def readout(vectors, texts):
        return vectors @ reading

    effects = coordinate_swaps.signed_effects(readout, x, labels, rows, fitted.effect[None])
    assert effects.mean() == pytest.approx(1)
    others = coordinate_swaps.signed_effects(readout, x, labels, rows, fitted.nulls["within-cell"])
    expected = fitted.nulls["within-cell"] @ reading / (fitted.effect @ reading)
    assert others.mean(axis=0) == pytest.approx(expected)


def test_both_signs_are_averaged(made):
    design, x, rows, fitted = made
    labels = designs.parity(design, TARGET)

    def even(vectors, texts):
        # Moves as far along either way: no effect of the target on it.
        return ((vectors - x[texts]) ** 2).sum(axis=1) + np.where(labels[texts], 1.0, 0.0)

    assert coordinate_swaps.signed_effects(even, x, labels, rows, fitted.effect[None]) == pytest.approx(0)
