import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterprobe import superposition_cells, superposition_genericity, superposition_inputs
from counterprobe.superposition_training import generator


def wanted(inputs, target):
    return superposition_inputs.boolean_pairs(inputs, torch.tensor([[0, 1]]), target)[:, 0].double().numpy()


@settings(max_examples=10, deadline=None)
@given(m=st.integers(2, 5))
@pytest.mark.parametrize(("target", "exact"), [("and", 0.25), ("xor", 0.5)])
def test_affine_minimax_errors_are_a_quarter_and_a_half(target, exact, m):
    inputs = superposition_inputs.all_sparse(m, m)
    fit = superposition_genericity.minimax_readoff(inputs.double().numpy(), wanted(inputs, target))
    assert fit.objective == pytest.approx(exact, abs=1e-6)
    said = inputs.double().numpy() @ fit.coefficients + fit.intercept
    assert np.abs(said - wanted(inputs, target)).max() == pytest.approx(exact, abs=1e-6)


def test_the_rows_of_the_affine_baselines_are_exact():
    estimates = {row["target"]: row["estimate"] for row in superposition_genericity.affine_rows()}
    assert estimates == pytest.approx({"and": 0.25, "xor": 0.5}, abs=1e-6)


def test_minimax_of_one_feature_is_half_the_range_of_what_it_cannot_tell():
    # Rows that look alike and want 0 and 0.8: no read-off errs by less than 0.4, and the middle does.
    fit = superposition_genericity.minimax_readoff(np.zeros((2, 1)), np.array([0.0, 0.8]))
    assert (fit.objective, fit.intercept) == pytest.approx((0.4, 0.4))


def test_the_cheapest_read_off_is_within_its_error_and_no_dearer_than_another():
    inputs = superposition_inputs.all_sparse(3, 3).double().numpy()
    target = inputs[:, 0]
    fit = superposition_genericity.cheapest_readoff(inputs, target, 0.1)
    # An error of .1 on either side lets the coefficient of the input itself fall to .8.
    assert fit.objective == pytest.approx(0.8)
    assert np.abs(inputs @ fit.coefficients + fit.intercept - target).max() <= 0.1 + 1e-9


def test_an_infeasible_programme_is_a_reason():
    inputs = superposition_inputs.all_sparse(2, 2).double().numpy()
    fit = superposition_genericity.cheapest_readoff(inputs, inputs[:, 0] * inputs[:, 1], 0.2)
    assert "infeasible" in fit.reason
    assert "within 0.2" in fit.reason
    assert np.isnan(fit.objective)
    fit = superposition_genericity.minimax_readoff(np.array([[np.nan]]), np.zeros(1))
    assert fit.reason == "features or targets are not finite"


def test_cells_that_cannot_be_solved_are_in_the_table():
    spec = {"least_squares": [{"m": 5, "d": 30, "s": 2}], "minimax": [{"m": 6, "d": 4, "s": 2}]}
    rows = superposition_genericity.readoff_rows(spec | {"pairs": 1, "error": 0.01, "networks": 2})
    cells = superposition_cells.cells(superposition_cells.networks(rows))
    interpolated = cells[(cells.readout == "least_squares") & (cells.d == 30)]
    assert (interpolated.excluded == 2).all()
    assert interpolated.reason.str.contains("interpolation: 30 neurons").all()
    assert {"max_error", "rms_error"} <= set(interpolated.score)
    cheap = cells[cells.readout == "cheapest"]
    assert (cheap.excluded == 2).all()
    assert cheap.reason.str.contains("1 of 1 pairs: linear programme: infeasible").all()
    assert (cells[(cells.readout == "minimax")].n_networks == 2).all()


def test_least_squares_errors_are_those_of_lstsq():
    draws = generator(3)
    features, targets = torch.randn(40, 7, generator=draws), torch.randn(40, 5, generator=draws)
    errors = superposition_genericity.least_squares_errors(features, targets).numpy()
    affine = np.column_stack([features.double().numpy(), np.ones(40)])
    fitted = affine @ np.linalg.lstsq(affine, targets.double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(errors, fitted - targets.numpy(), atol=1e-6)


def test_pattern_sums_are_sums_over_the_four_sign_patterns():
    draws = generator(4)
    weights = torch.randn(9, 6, generator=draws)
    pairs = torch.tensor([[0, 1], [4, 2]])
    inputs = superposition_inputs.four_cells(6, pairs, torch.tensor([2, 3]), draws)
    sums = superposition_genericity.pattern_sums(weights, pairs, inputs)
    for pair, (a, b) in enumerate(pairs.tolist()):
        hidden = torch.relu(inputs[pair, 2, 1] @ weights.T)
        for pattern, (first, second) in enumerate([(False, False), (False, True), (True, False), (True, True)]):
            members = ((weights[:, a] > 0) == first) & ((weights[:, b] > 0) == second)
            assert sums[pair, 2, 1, pattern].item() == pytest.approx(hidden[members].sum().item() / 9, abs=1e-6)


@pytest.mark.parametrize("target", ["and", "xor"])
def test_the_indicator_read_off_is_right_on_average_and_its_constant_is_predicted(target):
    theory = superposition_genericity.indicator_theory([3], target)
    assert theory.squared_bias < 1e-12
    d, m, draws = 256, 12, generator(7)
    pairs = superposition_inputs.random_pairs(m, 4, draws)
    means, squares = [], []
    for _ in range(60):
        weights = torch.randn(d, m, generator=draws)
        inputs = superposition_inputs.four_cells(m, pairs, torch.full((16,), 3), draws)
        sums = superposition_genericity.pattern_sums(weights, pairs, inputs)
        errors, reason = superposition_genericity.indicator_errors(sums, target, theory.coefficients)
        assert reason == ""
        means.append(errors.mean(dim=(0, 2)).numpy())
        squares.append(errors.square().mean().item())
    standard_errors = np.std(means, axis=0, ddof=1) / 60**0.5
    assert (np.abs(np.mean(means, axis=0)) < 4 * standard_errors).all()
    assert np.mean(squares) ** 0.5 == pytest.approx(theory.rms(d), rel=0.06)


def test_varying_numbers_of_active_inputs_leave_a_bias_that_no_width_removes():
    fixed = superposition_genericity.indicator_theory([4], "and")
    varying = superposition_genericity.indicator_theory([2, 4, 6], "and")
    assert fixed.rms(10**9) < 1e-3
    assert varying.rms(10**9) > 0.05


def test_a_network_without_all_patterns_has_no_fitted_read_off():
    sums = torch.zeros(1, 4, 4, 4, dtype=torch.float64)
    _, reason = superposition_genericity.indicator_errors(sums, "and", None)
    assert reason == "the four equations of the indicator read-off are singular"


def test_low_unweighted_powers_collapse_and_weighted_ones_do_not():
    spec = {"m": 8, "s": 2, "widths": [4], "norms": [1, 4], "weightings": ["unweighted", "weighted"]}
    spec |= {"networks": 2, "steps": 200, "batch": 24, "learning_rate": 0.01}
    table = superposition_cells.networks(superposition_genericity.loss_rows(spec))
    shares = table[(table.score == "collapsed") & (table.target == "and")].groupby("setting").estimate.mean()
    assert shares["L1 unweighted"] > 0.9
    assert shares["L1 weighted"] < 0.1
    assert shares["L4 weighted"] < 0.1
    ratios = table[table.score == "max_error_ratio"]
    assert set(ratios.network) == {"frozen / trained"}
    assert ratios.estimate.gt(0).all()


def test_a_diverged_loss_excludes_its_networks_only():
    spec = {"m": 5, "s": 2, "widths": [4], "norms": [2, 8], "weightings": ["unweighted"]}
    spec |= {"networks": 1, "steps": 30, "batch": 8, "learning_rate": 1e4}
    table = superposition_cells.networks(superposition_genericity.loss_rows(spec))
    eighth = table[table.setting == "L8 unweighted"]
    assert eighth.reason.str.startswith("diverged").all()
    assert eighth.estimate.isna().all()
    assert len(eighth) == len(table[table.setting == "L2 unweighted"])


@given(norm=st.integers(1, 9), values=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=5))
def test_powers_are_powers(norm, values):
    error = torch.tensor(values)
    torch.testing.assert_close(superposition_genericity._power(error, norm), error.abs() ** norm, rtol=1e-4, atol=1e-6)
