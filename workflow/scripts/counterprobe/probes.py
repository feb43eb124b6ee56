"""Linear probes: all label columns that share one activation matrix, solved together; decision values and scores.

Logistic regression, the reference probe. For each column k of labels (y = ±1), with its own penalty λ_k and,
optionally, its own weight for each row (0 drops the row: several folds can share one batch),

    minimise over w, b    Σ_i ω_ik log(1 + exp(−y_ik (w·x_i + b))) / Σ_i ω_ik  +  λ_k/2 ‖w‖²      (b is free)

which is scikit-learn's LogisticRegression with C = 1/(n λ). How it is solved:

- In the eigenbasis of the centred Gram matrix, XᵀX/n = V diag(s) Vᵀ, the Hessian is close to a·diag(s) + λ_k,
  0 < a ≤ 1/4, for every column and every penalty: ONE eigendecomposition preconditions all of them. At w = 0 and
  balanced classes a = 1/4 is exact and the first step is Newton's; later a = √(c/4), c the mean of p(1−p) over rows,
  halfway (in logarithm) between that bound (Böhning & Lindsay 1988, doi:10.1007/BF00049423) and the mean curvature.
- L-BFGS on all columns at once (Nocedal & Wright, Numerical Optimization, algorithm 7.4), that diagonal as H₀. Each
  iteration is two matrix products with a [d, K] block. The margins X w + b are kept, so the line search (Newton on a
  convex function of one variable, kept inside a bracket) needs none.
- A column stops when its gradient, in the norm of H₀, is `tol` of what it was at w = 0: the relative error of the
  coefficients is then between 1 and 4 times tol, more where a weak penalty meets separable labels. Its result is
  fixed there and the column leaves the batch, so that it does not depend on which others are slow.

Products run in the dtype of `features`; Gram matrix, eigenvectors and returned coefficients are float64.

Pitfalls: standardise on the training rows first (`standardise`), since the penalty is not invariant to scale.
Margins of a probe are in units of the features it was fitted on; `Standardisation.raw` undoes that. With 2 BLAS
threads on a busy machine the products can be ten times slower than with one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from counterprobe.progress import UserError

# Correction pairs of L-BFGS: 3 cost easy columns a third more iterations, 10 save none.
HISTORY = 6
# The line search ends when the slope along the direction has fallen to this share of what it was at the start.
SLOPE_LEFT = 0.3
# Converged columns leave when they are this share of the batch: leaving copies the state of those that stay.
LEAVING_SHARE = 0.1
# Floats in one [K, n] array of the solver's state; five such arrays should stay in the last-level cache of a CPU.
STATE_FLOATS = {"cpu": 2**21, "cuda": 2**27}
ROWS_AT_ONCE = 8192
# Newton needs one or two trials; halving a bracket that starts far off needs more.
MAX_TRIALS = 30
# A logit nearer to 0 than this is rounding noise: the text counts as half right.
TIE = 1e-5


# --- standardising ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standardisation:
    """x ↦ (x − mean) / scale, fitted on training rows; a constant column has scale 1 and becomes 0."""

    mean: Float[Tensor, "d"]
    scale: Float[Tensor, "d"]

    def apply(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Same dtype and device as `features`; the difference is taken in float64, means may dwarf deviations."""
        return ((features.double() - self.mean) / self.scale).to(features.dtype)

    def raw(
        self, coefficients: Float[Tensor, "d K"], intercepts: Float[Tensor, "K"]
    ) -> tuple[Float[Tensor, "d K"], Float[Tensor, "K"]]:
        """The same probe as a function of the features before standardisation."""
        raw = coefficients.double() / self.scale[:, None]
        return raw, intercepts.double() - self.mean @ raw


def standardise(train: Float[Tensor, "n d"]) -> Standardisation:
    """Mean and population standard deviation of each column, in float64.

    A column is constant if it varies by no more than the rounding of its own mean: dividing by that would blow noise
    up to unit variance.
    """
    mean, variance = _moments(train)
    scale = variance.sqrt()
    constant = scale <= 4 * torch.finfo(train.dtype).eps * mean.abs()
    return Standardisation(mean, torch.where(constant, torch.ones_like(scale), scale))


def _moments(features: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
    mean = features.mean(0, dtype=torch.float64)
    squares = sum(((rows.double() - mean) ** 2).sum(0) for rows in features.split(ROWS_AT_ONCE))
    return mean, squares / len(features)


# --- logistic regression ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogisticFit:
    """Probes in the units of the features they were fitted on: logit = x·coefficients + intercepts (float64).

    `gradient_norm` is the Euclidean norm of the objective's gradient in (w, b) at the solution returned.
    """

    coefficients: Float[Tensor, "d K"]
    intercepts: Float[Tensor, "K"]
    gradient_norm: Float[Tensor, "K"]
    iterations: Int[Tensor, "K"]
    converged: Bool[Tensor, "K"]


@dataclass(frozen=True)
class _Eigenbasis:
    """Centred features rotated so that their Gram matrix is diagonal, and a column of ones for the intercept."""

    rotated: Float[Tensor, "n r+1"]
    mean: Float[Tensor, "d"]
    vectors: Float[Tensor, "d r"]
    spectrum: Float[Tensor, "r+1"]
    negligible: Bool[Tensor, "r+1"]


def solve(
    features: Float[Tensor, "n d"],
    labels: Bool[Tensor, "n K"],
    penalty: Float[Tensor, "K"] | float,
    *,
    tol: float = 1e-5,
    max_iterations: int = 200,
    weights: Float[Tensor, "n K"] | Bool[Tensor, "n K"] | None = None,
    start: LogisticFit | None = None,
    names: Sequence[str] | None = None,
) -> LogisticFit:
    """L2 logistic regression of every column of labels on one activation matrix (objective: module docstring).

    `tol` is relative to the gradient at w = 0. float32 features carry about six digits: a smaller tol than 1e-6
    needs float64 ones. `weights` are relative within a column; False or 0 drops the row, exactly as if it were not
    there. `start` is a fit to begin from (another penalty, another revision). `names` name the columns in errors.
    A column that has not converged after `max_iterations` says so in `converged`; that is for the caller to judge.

    UserError: a non-finite feature, a column with one class, a negative penalty, negative weights; penalty 0 where
    the classes are separable, for then there is no minimum.
    """
    n, n_columns = labels.shape
    penalty = torch.as_tensor(penalty, dtype=features.dtype, device=features.device).expand(n_columns)
    if weights is not None:
        weights = weights.to(features.dtype)
    _check(features, labels, penalty, weights, names)
    basis = _eigenbasis(features)
    block = max(1, STATE_FLOATS["cuda" if features.is_cuda else "cpu"] // n)
    parts = [
        _descend(
            basis,
            labels[:, columns],
            penalty[columns],
            None if weights is None else weights[:, columns],
            None if start is None else (start.coefficients[:, columns], start.intercepts[columns]),
            tol,
            max_iterations,
        )
        for columns in (slice(first, first + block) for first in range(0, n_columns, block))
    ]
    solution, gradient = (torch.cat([part[i] for part in parts]).double() for i in (0, 1))
    iterations, converged = (torch.cat([part[i] for part in parts]) for i in (2, 3))
    unbounded = (penalty == 0) & ~converged
    if unbounded.any():
        name = _name(int(unbounded.nonzero()[0]), names)
        raise UserError(
            f"{name}: no minimum found with penalty 0 (the classes are separable, or nearly so); use a penalty > 0"
        )
    coefficients = basis.vectors @ solution[:, :-1].T
    # The solver's intercept belongs to centred features, and so does its gradient.
    intercepts = solution[:, -1] - basis.mean @ coefficients
    slopes = basis.vectors @ gradient[:, :-1].T + basis.mean[:, None] * gradient[:, -1]
    norm = (slopes.square().sum(0) + gradient[:, -1].square()).sqrt()
    return LogisticFit(coefficients, intercepts, norm, iterations, converged)


def _name(column: int, names: Sequence[str] | None) -> str:
    return f"label column {column}" if names is None else repr(names[column])


def _check(
    features: Tensor, labels: Tensor, penalty: Tensor, weights: Tensor | None, names: Sequence[str] | None
) -> None:
    if not torch.isfinite(features).all():
        row, column = (~torch.isfinite(features)).nonzero()[0].tolist()
        raise UserError(f"features: row {row}, column {column} is {features[row, column]}; probes need finite numbers")
    if not (torch.isfinite(penalty) & (penalty >= 0)).all():
        column = int((~(torch.isfinite(penalty) & (penalty >= 0))).nonzero()[0])
        raise UserError(f"{_name(column, names)}: penalty {float(penalty[column])} is not a finite number ≥ 0")
    if weights is None:
        positives, total = labels.sum(0), torch.full_like(penalty, len(labels))
    else:
        if not (torch.isfinite(weights) & (weights >= 0)).all():
            row, column = (~(torch.isfinite(weights) & (weights >= 0))).nonzero()[0].tolist()
            raise UserError(f"{_name(column, names)}: the weight of row {row} is {float(weights[row, column])}, not ≥ 0")
        positives, total = (labels & (weights > 0)).sum(0), (weights > 0).sum(0)
    one_class = (positives == 0) | (positives == total)
    if one_class.any():
        column = int(one_class.nonzero()[0])
        raise UserError(
            f"{_name(column, names)}: all {int(total[column])} training rows have one class "
            f"({bool(positives[column] > 0)}); a probe needs both"
        )


def _eigenbasis(features: Float[Tensor, "n d"]) -> _Eigenbasis:
    n, d = features.shape
    mean = features.mean(0, dtype=torch.float64).to(features.dtype)
    centred = features - mean
    to_features = None
    if n < d:
        # The rows span at most n dimensions and w stays in their span: solve there, the eigenproblem costs n³.
        to_features, triangle = torch.linalg.qr(centred.T)
        centred = triangle.T
    gram = sum(rows.T @ rows for rows in (part.double() for part in centred.split(ROWS_AT_ONCE))) / n
    spectrum, vectors = torch.linalg.eigh(gram)
    spectrum = spectrum.clamp(min=0)
    rotated = torch.empty(n, len(spectrum) + 1, dtype=features.dtype, device=features.device)
    torch.mm(centred, vectors.to(features.dtype), out=rotated[:, :-1])
    rotated[:, -1] = 1
    one = torch.ones(1, dtype=torch.float64, device=features.device)
    spectrum = torch.cat([spectrum, one])
    return _Eigenbasis(
        rotated=rotated,
        mean=mean.double(),
        vectors=vectors if to_features is None else to_features.double() @ vectors,
        spectrum=spectrum.to(features.dtype),
        negligible=spectrum <= max((32 * torch.finfo(features.dtype).eps) ** 2, 1e-14) * spectrum[:-1].max(),
    )


class _Batch:
    """The columns still being solved, one row each: a column's margins are contiguous, so sums over texts and the
    removal of columns are cheap.

    u are coefficients and intercept in the eigenbasis, margins = u·rotatedᵀ, p = σ(margins), residual = ω(p − y).
    """

    def __init__(self, basis: _Eigenbasis, labels: Tensor, penalty: Tensor, weights: Tensor | None) -> None:
        self.basis = basis
        self.y = labels.T.to(penalty.dtype).contiguous()
        # One factor serves the plain mean and the weighted one, whose weights sum to 1.
        self.weights, self.share = None, 1 / len(labels)
        if weights is not None:
            self.weights, self.share = (weights / weights.sum(0)).T.contiguous(), 1.0
        is_coefficient = torch.arange(len(basis.spectrum), device=penalty.device) < len(basis.spectrum) - 1
        self.ridge = penalty[:, None] * is_coefficient
        self.p, self.residual, self.scratch = (torch.empty_like(self.y) for _ in range(3))
        self.one = penalty.new_ones(1)
        self.history: list[tuple[Tensor, Tensor, Tensor]] = []
        self.u = torch.zeros_like(self.ridge)
        self.u[:, -1] = torch.logit(self._mean(self.y))
        self.margins = self.u[:, -1:].expand_as(self.y).contiguous()
        self.predict()
        self.differentiate()

    def move_to(self, coefficients: Tensor, intercepts: Tensor) -> None:
        self.u[:, :-1] = (self.basis.vectors.T @ coefficients.double()).T
        self.u[:, -1] = intercepts.double() + self.basis.mean @ coefficients.double()
        torch.mm(self.u, self.basis.rotated.T, out=self.margins)
        self.predict()
        self.differentiate()

    def keep(self, columns: Int[Tensor, "kept"]) -> None:
        for name in ("y", "ridge", "u", "margins", "p", "gradient", "scaling", "distance"):
            setattr(self, name, getattr(self, name)[columns])
        if self.weights is not None:
            self.weights = self.weights[columns]
        self.residual, self.scratch = self.residual[: len(columns)], self.scratch[: len(columns)]
        self.history = [tuple(part[columns] for part in pair) for pair in self.history]

    def predict(self) -> None:
        torch.sigmoid(self.margins, out=self.p)
        torch.sub(self.p, self.y, out=self.residual)
        if self.weights is not None:
            self.residual.mul_(self.weights)

    def differentiate(self) -> None:
        """Gradient, the diagonal that approximates the inverse Hessian, and the gradient's norm in it."""
        self.gradient = torch.addmm(self.ridge * self.u, self.residual, self.basis.rotated, alpha=self.share)
        curvature = (self._curvature(self.one.expand_as(self.p)) / 4).sqrt()
        diagonal = (curvature * self.basis.spectrum).add_(self.ridge)
        self.scaling = diagonal.reciprocal_()
        if self.basis.negligible.any():
            self.scaling.masked_fill_(self.basis.negligible & (self.ridge == 0), 0)
        self.distance = (self.gradient.square() * self.scaling).sum(1).sqrt()

    def separated(self) -> Bool[Tensor, "K"]:
        right_side = (self.margins > 0) == (self.y > 0.5)
        if self.weights is not None:
            right_side |= self.weights == 0
        return right_side.all(1)

    def step(self, idle: Bool[Tensor, "K"]) -> None:
        """One iteration of L-BFGS for all columns; idle ones come along but nothing waits for them."""
        direction = self._direction()
        slope = (self.gradient * direction).sum(1, keepdim=True)
        if not (slope < 0).all():
            # Rounding can spoil a product with the history when hardly any gradient is left.
            direction = torch.where(slope < 0, direction, -self.scaling * self.gradient)
            slope = (self.gradient * direction).sum(1, keepdim=True)
        length = self._search(direction, slope, idle[:, None])
        step = direction.mul_(length)
        self.u += step
        previous = self.gradient
        self.differentiate()
        change = self.gradient - previous
        product = (step * change).sum(1, keepdim=True)
        inverse = torch.where(product > 0, 1 / product, 0)
        self.history = [*self.history[-(HISTORY - 1) :], (step, change, inverse)]

    def _mean(self, values: Tensor) -> Tensor:
        return (values if self.weights is None else values * self.weights).sum(1) * self.share

    def _curvature(self, along: Float[Tensor, "K n"]) -> Float[Tensor, "K 1"]:
        """Mean of p(1 − p) along² over texts."""
        torch.ops.aten.sigmoid_backward.grad_input(along, self.p, grad_input=self.scratch)
        if self.weights is not None:
            self.scratch.mul_(self.weights)
        return self.scratch.mul_(along).sum(1, keepdim=True).mul_(self.share)

    def _direction(self) -> Float[Tensor, "K r+1"]:
        direction = self.gradient.neg()
        shares = []
        for step, change, inverse in reversed(self.history):
            share = (step * direction).sum(1, keepdim=True).mul_(inverse)
            direction.addcmul_(share, change, value=-1)
            shares.append(share)
        direction.mul_(self.scaling)
        for (step, change, inverse), share in zip(self.history, reversed(shares), strict=True):
            share.addcmul_((change * direction).sum(1, keepdim=True), inverse, value=-1)
            direction.addcmul_(share, step)
        return direction

    def _search(
        self, direction: Float[Tensor, "K r+1"], slope: Float[Tensor, "K 1"], idle: Bool[Tensor, "K 1"]
    ) -> Float[Tensor, "K 1"]:
        """How far to go: Newton's method on each column's convex function of one variable, kept inside a bracket.

        Moves margins, p and residual along.
        """
        along = torch.mm(direction, self.basis.rotated.T)
        ridged = self.ridge * direction
        ridge_slope = (ridged * self.u).sum(1, keepdim=True)
        ridge_curvature = (ridged * direction).sum(1, keepdim=True)
        length = -slope / (self._curvature(along) + ridge_curvature)
        self.margins.addcmul_(length, along)
        low, high = torch.zeros_like(length), torch.full_like(length, math.inf)
        for _ in range(MAX_TRIALS):
            self.predict()
            torch.mul(self.residual, along, out=self.scratch)
            here = self.scratch.sum(1, keepdim=True).mul_(self.share) + ridge_slope + length * ridge_curvature
            unfinished = (here.abs() > SLOPE_LEFT * slope.abs()) & ~idle
            if not unfinished.any():
                break
            low, high = torch.where(here < 0, length, low), torch.where(here > 0, length, high)
            proposal = length - here / (self._curvature(along) + ridge_curvature)
            middle = torch.where(high.isinf(), 4 * length, (low + high) / 2)
            proposal = torch.where((proposal > low) & (proposal < high), proposal, middle)
            change = torch.where(unfinished, proposal - length, 0)
            self.margins.addcmul_(change, along)
            length += change
        return length


def _descend(
    basis: _Eigenbasis,
    labels: Bool[Tensor, "n K"],
    penalty: Float[Tensor, "K"],
    weights: Float[Tensor, "n K"] | None,
    start: tuple[Float[Tensor, "d K"], Float[Tensor, "K"]] | None,
    tol: float,
    max_iterations: int,
) -> tuple[Float[Tensor, "K r+1"], Float[Tensor, "K r+1"], Int[Tensor, "K"], Bool[Tensor, "K"]]:
    """Solutions and gradients in the eigenbasis, iterations, converged."""
    batch = _Batch(basis, labels, penalty, weights)
    # Below the second bound the objective is within 1e-13 (float32) of its minimum: nothing is left to gain.
    goal = (tol * batch.distance).clamp(min=4 * torch.finfo(penalty.dtype).eps)
    if start is not None:
        batch.move_to(*start)
    solution, gradient = torch.empty_like(batch.u), torch.empty_like(batch.u)
    iterations = torch.full_like(penalty, max_iterations, dtype=torch.int64)
    converged = torch.zeros_like(penalty, dtype=torch.bool)
    active = torch.arange(len(penalty), device=penalty.device)
    idle, unpenalised = torch.zeros_like(converged), penalty == 0
    for iteration in range(max_iterations + 1):
        arrived = batch.distance <= goal
        stop = (arrived | (unpenalised & batch.separated())) if unpenalised.any() else arrived
        if iteration == max_iterations:
            stop = torch.ones_like(stop)
        stop = stop & ~idle
        if stop.any():
            leaving = active[stop]
            solution[leaving], gradient[leaving] = batch.u[stop], batch.gradient[stop]
            iterations[leaving], converged[leaving] = iteration, arrived[stop] 
            idle = idle | stop
        n_idle = int(idle.sum())
        if n_idle == len(idle):
            break
        if n_idle > LEAVING_SHARE * len(idle):
            stay = (~idle).nonzero()[:, 0]
            batch.keep(stay)
            active, goal, idle, unpenalised = active[stay], goal[stay], idle[stay], unpenalised[stay]
        batch.step(idle)
    return solution, gradient, iterations, converged
