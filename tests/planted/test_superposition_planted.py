"""Toy networks whose answer is known beforehand, at sizes that take seconds; the sweeps' full sizes are the
workflow's.
"""

import numpy as np
import pytest
import torch

from counterprobe import (
    superposition_cells,
    superposition_constructed,
    superposition_genericity,
    superposition_redundancy,
    superposition_trained,
)
from counterprobe.superposition_trained import Cell


def cells_of(rows):
    return superposition_cells.cells(superposition_cells.networks(rows))


def test_xors_are_read_where_inputs_are_redundant_and_not_where_they_are_distinct():
    spec = {
        "cells": [[16, 16], [64, 1]],
        "layers": 10,
        "networks": 3,
        "train": 4000,
        "test": 4000,
        "pairs": 4,
    }
    cells = superposition_cells.cells(superposition_redundancy.sweep(spec | {"penalty": 0.01}))
    accuracy = cells[(cells.target == "xor") & (cells.score == "accuracy")].set_index("m").estimate
    assert accuracy[16] >= 0.9
    assert accuracy[64] <= 0.55


def test_the_indicator_error_falls_as_one_over_the_root_of_the_width_at_fixed_s_only():
    spec = {
        "m": 24,
        "widths": [128, 512, 2048],
        "s": [3],
        "varying": [2, 4, 8],
        "pairs": 4,
        "contexts": 60,
        "networks": 6,
    }
    cells = cells_of(superposition_genericity.indicator_rows(spec))
    cells = cells[(cells.readout == "indicator") & (cells.target == "and")]
    slopes = cells[cells.score == "log_slope"].set_index("setting").estimate
    assert slopes["fixed s"] == pytest.approx(-0.5, abs=0.1)
    assert slopes["varying s"] > slopes["fixed s"] + 0.05
    errors = cells[(cells.score == "rms_error")]
    np.testing.assert_allclose(errors.estimate, errors.prediction, rtol=0.25)


@pytest.mark.parametrize(("m", "d", "rms"), [(10, 50, 0.10), (10, 100, 0.045), (20, 200, 0.057)])
def test_least_squares_read_offs_err_as_an_independent_computation_found(m, d, rms):
    """rms: from a computation made before this code. XOR = x + y − 2 AND doubles the error."""
    spec = {
        "least_squares": [{"m": m, "d": d, "s": 3}],
        "minimax": [],
        "pairs": 1,
        "error": 0.25,
        "networks": 3,
    }
    cells = cells_of(superposition_genericity.readoff_rows(spec)).set_index(["target", "score"]).estimate
    assert cells["and", "rms_error"] == pytest.approx(rms, rel=0.12)
    assert cells["xor / and", "rms_error_ratio"] == pytest.approx(2.0, rel=0.1)


def test_a_random_layer_beats_every_affine_read_off_of_the_inputs():
    spec = {
        "least_squares": [],
        "minimax": [{"m": 8, "d": 56, "s": 3}],
        "pairs": 2,
        "error": 0.25,
        "networks": 3,
    }
    cells = cells_of(superposition_genericity.readoff_rows(spec))
    errors = cells[cells.readout == "minimax"].set_index("target")
    assert errors.loc["and"].upper < 0.25
    assert errors.loc["xor"].upper < 0.5


def test_features_that_share_no_neuron_have_no_readable_xor():
    spec = {"base": {"m": 16, "d": 64, "s": 2, "p": 0}, "m": [], "d": [], "s": [], "p": [0.4]}
    spec |= {"networks": 6, "items": 400, "penalty": 0.001, "dichotomies": 4}
    cells = cells_of(superposition_constructed.designated_rows(spec))
    direct = cells[(cells.setting == "direct inputs")].set_index(["p", "score"])
    # Not nearly one half: the representation is additive item by item, so the probe has nothing at all.
    assert direct.loc[(0.0, "accuracy")].estimate == pytest.approx(0.5, abs=1e-9)
    assert direct.loc[(0.0, "interaction")].estimate == pytest.approx(0.0, abs=1e-9)
    assert direct.loc[(0.4, "accuracy")].lower > 0.5


def test_an_xor_is_read_from_a_network_made_for_ands_where_their_error_is_below_a_quarter():
    spec = {"m": 32, "dimensions": [24], "widths": [128, 256, 16384], "s": [2], "pairs": 8, "contexts": 8}
    spec |= {"networks": 3}
    spec |= {"probed": {"widths": [256], "s": [4], "items": 96, "penalty": 0.001, "dichotomies": 4}}
    table = superposition_cells.networks(superposition_constructed.xor_rows(spec))
    read = table[(table.setting == "direct inputs") & (table.readout == "mean")]
    read = read.set_index(["d", "target", "score"]).sort_index()
    assert (read.loc[(16384, "and", "error_bound")].estimate < 0.25).all()
    assert (read.loc[(16384, "and", "max_error")].estimate < 0.25).all()
    assert (read.loc[(16384, "xor", "threshold_accuracy")].estimate == 1).all()
    # p = .75: nearly every neuron is connected to nearly every input, and every pair with one on reads as both.
    assert (read.loc[(256, "and", "error_bound")].estimate > 0.5).all()
    assert (read.loc[(256, "xor", "threshold_accuracy")].estimate < 0.6).all()
    # p = 1.06: no network.
    assert read.loc[128].estimate.isna().all()
    superposed = table[table.setting.str.startswith("superposed") & (table.d == 16384) & (table.readout == "mean")]
    superposed = superposed.set_index(["target", "score"]).estimate
    assert (superposed["and", "max_error"] > 0.25).all()
    assert (superposed["xor", "threshold_accuracy"] < 0.9).all()
    probed = table[(table.readout == "logistic") & (table.network == "bernoulli") & (table.setting == "direct inputs")]
    probed = probed.set_index("score").estimate
    assert probed["accuracy"].min() > 0.6
    assert probed["shuffled"].mean() == pytest.approx(0.5, abs=0.05)


def test_an_xor_is_free_where_its_and_is_computed_and_there_is_room():
    spec = {
        "steps": 1500,
        "batch": 64,
        "learning_rate": 0.003,
        "items": 96,
        "penalty": 0.001,
        "dichotomies": 2,
        "learned": 0.25,
    }
    base = {"m": 4, "d": 16, "s": 2, "depth": 1}
    table = superposition_trained.sweep(spec | {"base": base, "m": [], "d": [], "s": [], "depth": [], "networks": 3})
    accuracy = table[(table.score == "accuracy") & table.network.isin(["trained", "init"])]
    accuracy = accuracy.groupby(["network", "target"]).estimate.mean()
    assert accuracy["trained", "xor_computed"] > 0.9
    assert accuracy["trained", "xor_uncomputed"] < 0.8
    assert accuracy["init", "xor_computed"] < 0.8
    assert accuracy["trained", "feature"] > 0.99


def test_a_stack_is_as_many_separate_runs():
    spec = {"steps": 96, "batch": 64, "learning_rate": 0.003}
    networks = [Cell(8, 8, 2.0, 1, seed) for seed in range(6)]
    _, together = superposition_trained.train(networks, spec)
    for index, cell in enumerate(networks):
        _, alone = superposition_trained.train([cell], spec)
        for name, value in alone.parameters.items():
            torch.testing.assert_close(together.parameters[name][index], value[0], rtol=1e-3, atol=1e-4)
