"""Probes against independent solvers (scikit-learn, numpy inverses, transformer_lens) and against algebra."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from counterprobe import probes
from counterprobe.progress import UserError

FLOAT64_TOL = 1e-8


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small take ten times as long with two threads on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def labelled(rng: np.random.Generator, x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """A column of labels per noise level: the sign of a linear score; both classes occur twice at least."""
    scores = x @ rng.standard_normal((x.shape[1], len(noise)))
    scores = scores / np.maximum(scores.std(0), 1e-12) + noise * rng.standard_normal((len(x), len(noise)))
    return scores > np.sort(scores, axis=0)[np.clip((rng.uniform(0.3, 0.7) * len(x)), 1, len(x) - 2).astype(int)]


# name, n, d: 24 problems; each has six columns, from separable to pure noise, with penalties from 1e-4 to 10.
KINDS = ("plain", "constant", "collinear", "ill_scaled", "tiny", "wide")
PROBLEMS = [(kind, seed) for kind in KINDS for seed in range(4)]


def problem(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = generator(1000 * KINDS.index(kind) + seed)
    n, d = {"tiny": (int(rng.integers(4, 12)), 3), "wide": (40, 90)}.get(
        kind, (int(rng.integers(80, 300)), int(rng.integers(2, 40)))
    )
    x = rng.standard_normal((n, d)) @ np.diag(np.arange(1, d + 1) ** -0.5) @ rng.standard_normal((d, d))
    x = (x - x.mean(0)) / x.std(0)
    if kind == "constant":
        x[:, 0], x[:, -1] = 0, 3
    if kind == "collinear":
        x = np.concatenate([x, x[:, :1] - 2 * x[:, 1:2]], axis=1)
    if kind == "wide":
        x = x + 2
    if kind == "ill_scaled":
        x = x * 10.0 ** rng.uniform(-2, 2, d) + 10
    y = labelled(rng, x, np.array([0, 0, 0.3, 1, 3, 30]))
    return x, y, 10.0 ** rng.permutation(np.linspace(-4, 1, 6))


def oracle(x: np.ndarray, y: np.ndarray, penalty: float, weights: np.ndarray | None = None) -> tuple[np.ndarray, float]:
    """Coefficients and intercept by scikit-learn: n C λ = 1, n the sum of the weights."""
    total = len(x) if weights is None else weights.sum()
    model = LogisticRegression(C=1 / (total * penalty), solver="newton-cholesky", tol=1e-12, max_iter=1000)
    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        # Its line search stops with a warning at the last digit; the tests compare what came out.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        model.fit(x, y, sample_weight=weights)
    return model.coef_[0], float(model.intercept_[0])


def objective(x: np.ndarray, y: np.ndarray, penalty: float, w: np.ndarray, b: float) -> float:
    return np.logaddexp(0, -np.where(y, 1, -1) * (x @ w + b)).mean() + penalty / 2 * (w @ w)


def gradient_norm(x: np.ndarray, y: np.ndarray, penalty: float, w: np.ndarray, b: float) -> float:
    residual = 1 / (1 + np.exp(-(x @ w + b))) - y
    return math.hypot(np.linalg.norm(x.T @ residual / len(x) + penalty * w), residual.mean())


def solve(x: np.ndarray, y: np.ndarray, penalty: np.ndarray, dtype=torch.float64, **options):
    tol = options.pop("tol", FLOAT64_TOL)
    return probes.solve(
        torch.tensor(x, dtype=dtype),
        torch.tensor(y),
        torch.tensor(penalty),
        tol=tol,
        max_iterations=2000,
        **options,
    )


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# --- the solver against scikit-learn -----------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "seed"), PROBLEMS)
def test_same_minimum_as_scikit_learn(kind, seed):
    x, y, penalty = problem(kind, seed)
    fit = solve(x, y, penalty)
    assert fit.converged.all()
    fresh = generator(seed).standard_normal((500, x.shape[1])) * x.std(0) + x.mean(0)
    for k in range(y.shape[1]):
        w, b = oracle(x, y[:, k], penalty[k])
        own, own_b = fit.coefficients[:, k].numpy(), float(fit.intercepts[k])
        assert objective(x, y[:, k], penalty[k], own, own_b) <= objective(x, y[:, k], penalty[k], w, b) + 1e-10
        assert relative(own, w) < 1e-3
        assert abs(own_b - b) < 1e-3 * max(1, abs(b))
        for points in (x, fresh):
            assert ((points @ own + own_b > 0) == (points @ w + b > 0)).all()


@pytest.mark.parametrize(("kind", "seed"), [pair for pair in PROBLEMS if pair[0] != "ill_scaled"])
def test_float32_at_the_default_tolerance_beats_scikit_learns_default(kind, seed):
    x, y, penalty = problem(kind, seed)
    x = x.astype(np.float32).astype(float)
    fit = probes.solve(torch.tensor(x, dtype=torch.float32), torch.tensor(y), torch.tensor(penalty))
    assert fit.converged.all()
    own, peer = [], []
    for k in range(y.shape[1]):
        w, _ = oracle(x, y[:, k], penalty[k])
        own.append(relative(fit.coefficients[:, k].numpy(), w))
        default = LogisticRegression(C=1 / (len(x) * penalty[k]), max_iter=1000)
        with threadpool_limits(1, user_api="blas"):
            peer.append(relative(default.fit(x, y[:, k]).coef_[0], w))
    assert max(own) < max(1e-3, max(peer))
    assert np.median(own) < 3e-4


def test_float32_at_a_tight_tolerance_reaches_six_digits():
    x, y, penalty = problem("plain", 0)
    x = x.astype(np.float32).astype(float)
    exact, single = solve(x, y, penalty), solve(x, y, penalty, torch.float32, tol=1e-6)
    assert relative(single.coefficients.numpy(), exact.coefficients.numpy()) < 1e-5


def test_unstandardised_features_of_very_different_scale_need_no_more_iterations():
    rng = generator(3)
    x = rng.standard_normal((600, 64))
    y = labelled(rng, x, np.array([0.5, 1, 3]))
    scales = 10.0 ** rng.uniform(-3, 3, 64)
    # The penalty means nothing on such features; it is small so that it does not decide.
    plain = solve(x, y, np.full(3, 1e-7), torch.float32, tol=1e-4)
    scaled = solve(x * scales, y, np.full(3, 1e-7), torch.float32, tol=1e-4)
    assert scaled.converged.all()
    assert scaled.iterations.max() <= 3 * plain.iterations.max()


def test_penalty_zero_is_maximum_likelihood_where_there_is_one():
    rng = generator(4)
    x = rng.standard_normal((200, 5))
    x = np.concatenate([x, x[:, :1] + x[:, 1:2]], axis=1)
    y = labelled(rng, x, np.array([1.0, 2.0]))
    fit = solve(x, y, np.zeros(2))
    for k in range(2):
        # Collinear columns leave w free in one direction: logits are what both solvers agree on.
        with threadpool_limits(1, user_api="blas"):
            model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(x, y[:, k])
        logits = x @ fit.coefficients[:, k].numpy() + float(fit.intercepts[k])
        assert np.abs(logits - model.decision_function(x)).max() < 1e-4
        assert np.linalg.norm(fit.coefficients[:, k]) <= np.linalg.norm(model.coef_) + 1e-6


def test_two_rows_are_enough():
    fit = solve(np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([[True], [False]]), np.array([0.1]))
    w = float(fit.coefficients[0, 0])
    # By symmetry b = 0, and w solves σ(−w) = λw.
    assert abs(1 / (1 + math.exp(w)) - 0.1 * w) < 1e-8
    assert abs(float(fit.intercepts[0])) < 1e-8
    assert fit.coefficients[1, 0] == 0


def test_features_without_variance_leave_the_prior():
    fit = solve(np.full((10, 3), 7.0), np.arange(10)[:, None] < 3, np.array([1e-2]))
    assert fit.converged.all()
    assert fit.coefficients.abs().max() == 0
    assert abs(float(fit.intercepts[0]) - math.log(3 / 7)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_xor_of_an_additive_representation_has_no_direction(dtype):
    """The optimum is w = 0 in theory; every logit has to be a tie, not the sign of a rounding error."""
    rng = generator(11)
    cells = np.array([[a, b] for a in (-1, 1) for b in (-1, 1)] * 50)
    x = 3 * cells @ rng.standard_normal((2, 20)) + np.repeat(rng.standard_normal((50, 20)), 4, axis=0) + 7
    xor = cells[:, :1] * cells[:, 1:] > 0
    fit = solve(x, np.concatenate([xor, cells > 0], axis=1), np.array([1e-4, 1e-2, 1.0]), dtype, tol=1e-4)
    assert fit.converged.all()
    logits = x @ fit.coefficients.numpy() + fit.intercepts.numpy()
    assert np.abs(logits[:, 0]).max() < probes.TIE
    assert ((logits[:, 1:] > 0) == (cells > 0)).all()


# --- weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_masked_rows_are_absent(kind):
    x, y, penalty = problem(kind, 1)
    rng = generator(5)
    mask = rng.random(y.shape) < 0.7
    for k in range(y.shape[1]):
        # Both classes stay.
        mask[np.flatnonzero(y[:, k])[0], k] = mask[np.flatnonzero(~y[:, k])[0], k] = True
    # What stands in a dropped row must not matter.
    masked = solve(x, np.where(mask, y, ~y), penalty, weights=torch.tensor(mask))
    for k in range(y.shape[1]):
        rows = mask[:, k]
        alone = solve(x[rows], y[rows][:, [k]], penalty[[k]])
        assert relative(masked.coefficients[:, k].numpy(), alone.coefficients[:, 0].numpy()) < 1e-5
        assert abs(float(masked.intercepts[k] - alone.intercepts[0])) < 1e-5 * max(1, abs(float(alone.intercepts[0])))


def test_weights_are_those_of_scikit_learn_and_relative():
    x, y, penalty = problem("plain", 2)
    weights = generator(6).uniform(0, 3, y.shape)
    fit = solve(x, y, penalty, weights=torch.tensor(weights))
    scaled = solve(x, y, penalty, weights=torch.tensor(17 * weights))
    assert relative(scaled.coefficients.numpy(), fit.coefficients.numpy()) < 1e-6
    for k in range(y.shape[1]):
        w, b = oracle(x, y[:, k], penalty[k], weights[:, k])
        assert relative(fit.coefficients[:, k].numpy(), w) < 1e-5
        assert abs(float(fit.intercepts[k]) - b) < 1e-5 * max(1, abs(b))


# --- invariances -------------------------------------------------------------------------------------------

SMALL = st.tuples(st.sampled_from(KINDS), st.integers(0, 50))


@settings(max_examples=15)
@given(SMALL, st.randoms(use_true_random=False))
def test_order_of_columns_does_not_matter(which, random):
    x, y, penalty = problem(*which)
    order = random.sample(range(6), 6)
    fit, shuffled = solve(x, y, penalty), solve(x, y[:, order], penalty[order])
    for position, k in enumerate(order):
        assert relative(shuffled.coefficients[:, position].numpy(), fit.coefficients[:, k].numpy()) < 1e-6


@settings(max_examples=15)
@given(SMALL)
def test_flipping_labels_flips_the_probe(which):
    x, y, penalty = problem(*which)
    fit, flipped = solve(x, y, penalty), solve(x, ~y, penalty)
    for k in range(6):
        assert relative(-flipped.coefficients[:, k].numpy(), fit.coefficients[:, k].numpy()) < 1e-5
    assert torch.allclose(-flipped.intercepts, fit.intercepts, rtol=1e-4, atol=1e-5)


@settings(max_examples=15)
@given(SMALL, st.integers(0, 1000))
def test_rotating_and_moving_features_rotates_the_probe(which, seed):
    x, y, penalty = problem(*which)
    d = x.shape[1]
    rotation = np.linalg.qr(generator(seed).standard_normal((d, d)))[0]
    fit, rotated = solve(x, y, penalty), solve(x @ rotation + 5, y, penalty)
    for k in range(6):
        assert relative(rotation @ rotated.coefficients[:, k].numpy(), fit.coefficients[:, k].numpy()) < 1e-4


@settings(max_examples=20)
@given(SMALL, st.sampled_from([1e-2, 1e-3, 1e-5]), st.sampled_from([torch.float32, torch.float64]))
def test_the_reported_gradient_norm_is_the_gradient_at_the_solution(which, tol, dtype):
    x, y, penalty = problem(*which)
    x = torch.tensor(x, dtype=dtype).double().numpy()
    fit = solve(x, y, penalty, dtype, tol=tol)
    eps = torch.finfo(dtype).eps
    for k in range(6):
        true = gradient_norm(x, y[:, k], penalty[k], fit.coefficients[:, k].numpy(), float(fit.intercepts[k]))
        # Rounding of a sum of residuals times features, the features as large as they come.
        assert abs(float(fit.gradient_norm[k]) - true) < 0.02 * true + 50 * eps * np.abs(x).max() ** 2


def test_a_tighter_tolerance_means_a_smaller_gradient():
    x, y, penalty = problem("plain", 3)
    norms = torch.stack([solve(x, y, penalty, tol=tol).gradient_norm for tol in (1e-2, 1e-4, 1e-6, 1e-8)])
    # Less or equal: one step can satisfy two tolerances.
    assert (norms[1:] <= norms[:-1]).all()
    assert (norms[-1] < 1e-4 * norms[0]).all()


def test_blocks_of_columns_give_the_same_probes(monkeypatch):
    x, y, penalty = problem("plain", 0)
    whole = solve(x, y, penalty)
    monkeypatch.setattr(probes, "BLOCK_FLOATS", {"cpu": 1})
    monkeypatch.setattr(probes, "BLOCK_COLUMNS", 2)
    parts = solve(x, y, penalty)
    assert relative(parts.coefficients.numpy(), whole.coefficients.numpy()) < 1e-8
    assert (parts.iterations == whole.iterations).all()


def test_two_runs_are_equal_to_the_last_bit():
    x, y, penalty = problem("plain", 1)
    first, second = (solve(x, y, penalty, torch.float32) for _ in range(2))
    assert torch.equal(first.coefficients, second.coefficients)


@pytest.mark.parametrize("kind", ["plain", "wide"])
def test_a_good_start_saves_iterations_and_changes_nothing(kind):
    x, y, penalty = problem(kind, 2)
    cold = solve(x, y, penalty)
    warm = solve(x, y, penalty, start=solve(x, y, penalty, tol=1e-4))
    assert warm.iterations.sum() < 0.8 * cold.iterations.sum()
    assert relative(warm.coefficients.numpy(), cold.coefficients.numpy()) < 1e-5
    assert (solve(x, y, penalty, start=cold).iterations == 0).all()


@pytest.mark.parametrize("factor", [-1000.0, -10.0, 30.0, 1e4])
def test_a_start_worse_than_none_is_not_used(factor):
    x, y, penalty = problem("plain", 1)
    cold = solve(x, y, penalty)
    fields = [cold.gradient_norm, cold.iterations, cold.converged]
    bad = probes.LogisticFit(factor * cold.coefficients, factor * cold.intercepts, *fields)
    recovered = solve(x, y, penalty, start=bad)
    assert torch.equal(recovered.iterations, cold.iterations)
    assert torch.equal(recovered.coefficients, cold.coefficients)


def test_a_column_that_runs_out_of_iterations_says_so():
    x, y, penalty = problem("plain", 0)
    penalty = np.array([1e-6, *[10.0] * 5])
    fit = probes.solve(torch.tensor(x), torch.tensor(y), torch.tensor(penalty), tol=1e-8, max_iterations=8)
    assert fit.converged.tolist() == [False] + [True] * 5
    assert fit.iterations[0] == 8
    assert fit.gradient_norm[0] > fit.gradient_norm[1:].max()


@pytest.mark.gpu
def test_cuda_agrees_with_the_processor():
    x, y, penalty = problem("plain", 0)
    here = solve(x, y, penalty, torch.float32, tol=1e-5)
    there = probes.solve(
        torch.tensor(x, dtype=torch.float32).cuda(),
        torch.tensor(y).cuda(),
        torch.tensor(penalty).cuda(),
        tol=1e-5,
    )
    assert there.coefficients.is_cuda
    assert relative(there.coefficients.cpu().numpy(), here.coefficients.numpy()) < 1e-3


# --- what the solver refuses -------------------------------------------------------------------------------


def refused(**changes):
    rng = generator(7)
    x = rng.standard_normal((30, 4))
    given = {"x": x, "y": labelled(rng, x, np.array([3.0, 3.0])), "penalty": np.array([0.1, 0.1])} | changes
    with pytest.raises(UserError) as error:
        solve(**given)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_one_class_is_refused_by_name():
    y = np.stack([np.arange(30) < 9, np.ones(30, dtype=bool)], axis=1)
    assert "'speaker^negated'" in refused(y=y, names=["speaker", "speaker^negated"])
    assert "label column 1" in refused(y=y)


def test_one_class_left_by_the_weights_is_refused_by_name():
    y = np.stack([np.arange(30) < 9, np.arange(30) % 2 == 0], axis=1)
    message = refused(y=y, weights=torch.tensor(np.stack([np.arange(30) >= 9, np.ones(30, dtype=bool)], axis=1)))
    assert "label column 0" in message
    assert "21 training rows are False" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused_with_their_place(value):
    x = generator(8).standard_normal((30, 4))
    x[17, 2] = value
    assert "row 17, column 2" in refused(x=x)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_penalties_that_are_no_penalty_are_refused(value):
    assert "label column 1: penalty" in refused(penalty=np.array([0.1, value]))


def test_negative_weights_are_refused():
    weights = torch.ones(30, 2)
    weights[4, 1] = -0.5
    message = refused(weights=weights)
    assert "label column 1" in message
    assert "row 4" in message


@pytest.mark.parametrize("kind", ["plain", "wide"])
def test_penalty_zero_on_separable_classes_is_refused_by_name(kind):
    x, y, penalty = problem(kind, 0)
    penalty[0] = 0
    assert "separable" in refused(x=x, y=y, penalty=penalty)
    assert "'match'" in refused(x=x, y=y, penalty=penalty, names=["match", *"abcde"])


# --- standardising -----------------------------------------------------------------------------------------


def test_standardised_features_and_the_way_back():
    x = torch.tensor(generator(9).standard_normal((200, 6)) * [1e-3, 1, 1e3, 1, 1, 1] + [0, 0, 0, 1e4, -7, 0])
    x[:, 5] = 0.1
    standardisation = probes.standardise(x)
    z = standardisation.apply(x)
    assert torch.allclose(z.mean(0), torch.zeros(6, dtype=x.dtype), atol=1e-10)
    assert torch.allclose(z.std(0, correction=0), torch.tensor([1.0] * 5 + [0], dtype=x.dtype), atol=1e-10)
    w, b = torch.randn(6, 2, dtype=x.dtype), torch.randn(2, dtype=x.dtype)
    raw, raw_b = standardisation.raw(w, b)
    assert torch.allclose(x @ raw + raw_b, z @ w + b)


def test_rounding_is_not_variance():
    x = torch.full((50, 2), 1000.1)
    x[::2, 0] = torch.nextafter(x[0, 0], torch.tensor(2000.0))
    x[:, 1] += torch.linspace(-0.1, 0.1, 50)
    standardisation = probes.standardise(x)
    assert standardisation.scale[0] == 1
    assert abs(float(standardisation.scale[1]) - 0.0589) < 1e-3


def test_standardising_needs_no_more_than_the_training_rows_and_keeps_precision():
    # float32 sums of 1e4 ± 1 over 20,000 rows would lose the deviations.
    x = torch.tensor(generator(10).standard_normal((20_000, 1)) + 1e4, dtype=torch.float32)
    exact = x.double()
    standardisation = probes.standardise(x)
    assert abs(float(standardisation.scale - exact.std(correction=0))) < 1e-9
    assert abs(float(standardisation.mean - exact.mean())) < 1e-9


def test_logistic_probe_is_in_raw_units():
    x, y, penalty = problem("ill_scaled", 0)
    probe = probes.logistic(torch.tensor(x), torch.tensor(y), torch.tensor(penalty))
    z = (x - x.mean(0)) / x.std(0)
    for k in range(6):
        w, b = oracle(z, y[:, k], penalty[k])
        logits = x @ probe.directions[:, k].numpy() + float(probe.intercepts[k])
        assert np.abs(logits - (z @ w + b)).max() < 0.02 * np.abs(z @ w + b).max()


# --- closed-form probes ------------------------------------------------------------------------------------


def test_mass_mean_points_from_mean_to_mean_with_the_boundary_half_way():
    x, y, _ = problem("plain", 0)
    probe = probes.mass_mean(torch.tensor(x), torch.tensor(y))
    for k in range(6):
        high, low = x[y[:, k]].mean(0), x[~y[:, k]].mean(0)
        assert np.allclose(probe.directions[:, k].numpy(), high - low)
        assert abs((high + low) / 2 @ probe.directions[:, k].numpy() + float(probe.intercepts[k])) < 1e-10


@pytest.mark.parametrize("seed", range(4))
def test_lda_is_scikit_learns_up_to_the_prior(seed):
    x, y, _ = problem("plain", seed)
    probe = probes.lda(torch.tensor(x), torch.tensor(y), ridge=0.0)
    for k in range(6):
        with threadpool_limits(1, user_api="blas"):
            model = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y[:, k])
        assert np.allclose(probe.directions[:, k].numpy(), model.coef_[0], rtol=1e-6)
        # Its boundary moves with the prior, ours stays half way.
        prior = math.log(y[:, k].mean() / (1 - y[:, k].mean()))
        assert abs(float(probe.intercepts[k]) - (model.intercept_[0] - prior)) < 1e-6


@pytest.mark.parametrize("kind", ["plain", "wide", "constant", "collinear"])
def test_lda_with_a_ridge_is_the_inverse_written_out(kind):
    x, y, _ = problem(kind, 0)
    probe = probes.lda(torch.tensor(x), torch.tensor(y), ridge=1e-2)
    for k in range(6):
        high, low = x[y[:, k]], x[~y[:, k]]
        within = ((high - high.mean(0)).T @ (high - high.mean(0)) + (low - low.mean(0)).T @ (low - low.mean(0))) / len(
            x
        )
        ridge = 1e-2 * x.var(0).mean() * np.eye(x.shape[1])
        expected = np.linalg.solve(within + ridge, high.mean(0) - low.mean(0))
        assert relative(probe.directions[:, k].numpy(), expected) < 1e-7


@pytest.mark.parametrize("kind", ["wide", "constant", "collinear"])
def test_lda_without_a_ridge_refuses_a_singular_covariance(kind):
    x, y, _ = problem(kind, 0)
    with pytest.raises(UserError, match="ridge"):
        probes.lda(torch.tensor(x), torch.tensor(y), ridge=0.0)


@pytest.mark.parametrize("family", [probes.mass_mean, probes.lda])
def test_closed_forms_refuse_one_class_by_name(family):
    x, y, _ = problem("plain", 0)
    y[:, 3] = True
    with pytest.raises(UserError, match="'truth'"):
        family(torch.tensor(x), torch.tensor(y), names=["a", "b", "c", "truth", "e", "f"])


# --- scores ------------------------------------------------------------------------------------------------


def test_scores_of_texts():
    directions = torch.tensor([[3.0, 0.0], [4.0, 0.0]], dtype=torch.float64)
    probe = probes.LinearProbe(
        directions, torch.tensor([1.0, 5e-6], dtype=torch.float64), torch.ones(2, dtype=torch.bool)
    )
    x = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    labels = torch.tensor([[True, True], [True, False]])
    scores = probes.score_texts(probe, x, labels)
    assert scores.decision.tolist() == [[4, 5e-6], [-3, 5e-6]]
    assert scores.correct.tolist() == [[1, 0.5], [0, 0.5]]
    log_loss = [math.log2(1 + math.exp(-4)), math.log2(1 + math.exp(3))]
    assert np.allclose(scores.bits[:, 0], [1 - log_loss[0], 1 - log_loss[1]])
    assert np.allclose(scores.bits[:, 1], 0, atol=1e-5)
    assert np.allclose(scores.margin[:, 0], [4 / 5, -3 / 5])
    # A probe without a direction has no boundary to be far from.
    assert scores.margin[:, 1].tolist() == [0, 0]


def test_bits_stay_finite_for_logits_beyond_the_range_of_exp():
    probe = probes.LinearProbe(torch.tensor([[1.0]]).double(), torch.zeros(1).double(), torch.tensor([True]))
    scores = probes.score_texts(probe, torch.tensor([[-5000.0], [5000.0]]), torch.tensor([[True], [True]]))
    assert np.allclose(scores.bits[:, 0], [1 - 5000 / math.log(2), 1])


# --- transformer_lens --------------------------------------------------------------------------------------


def test_transformer_lens_finds_the_same_probe():
    from transformer_lens.tools.analysis.sparse_probing import fit_sparse_probe

    x, y, _ = problem("plain", 1)
    d = x.shape[1]
    features, labels = torch.tensor(3 * x + 1), torch.tensor(y[:, 3])
    other = fit_sparse_probe(
        features, labels, k=d, preprocess="standardize", class_weight=None, l2_strength=0.02, max_iter=500
    )
    chosen = features[:, other.selected_features]
    train, test = chosen[other.train_indices], chosen[other.test_indices]
    standardisation = probes.standardise(train)
    fit = probes.solve(standardisation.apply(train), labels[other.train_indices, None], 0.02, tol=1e-9)
    assert relative(fit.coefficients[:, 0].numpy(), other.coefficients.numpy()) < 1e-5
    assert abs(float(fit.intercepts[0]) - float(other.intercept)) < 1e-5
    probe = probes.LinearProbe(*standardisation.raw(fit.coefficients, fit.intercepts), fit.converged)
    held_out = labels[other.test_indices, None]
    scores = probes.score_texts(probe, test, held_out)
    assert float(scores.correct.mean()) == pytest.approx(other.metrics.accuracy)
    assert roc_auc_score(held_out[:, 0], scores.decision[:, 0]) == pytest.approx(other.metrics.roc_auc)
