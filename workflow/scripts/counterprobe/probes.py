"""Linear probes: all labels that share one activation matrix, solved together; logits and scores of texts.

Logistic regression, the reference probe. For each column k of labels (y = ±1), with a penalty λ_k of its own
and, if wanted, a weight of its own for every row (0 drops the row: several folds can share one batch),

    minimise over w, b    Σ_i ω_ik log(1 + exp(−y_ik (w·x_i + b))) / Σ_i ω_ik  +  λ_k/2 ‖w‖²     (b is free)

which is scikit-learn's LogisticRegression with C = 1/(n λ). How it is solved:

- In the eigenbasis of the centred Gram matrix, XᵀX/n = V diag(s) Vᵀ, the Hessian is close to c_k diag(s) +
  λ_k, c_k the mean of p(1 − p), for every column and every penalty: ONE eigendecomposition preconditions them
  all. At w = 0 it is exact and the first step is Newton's. (The bound c = 1/4 of Böhning and Lindsay 1988,
  doi:10.1007/BF00049423, would do for all steps, but takes up to twice as many where labels are separable.)
- L-BFGS on all columns at once (Nocedal and Wright, Numerical Optimization, algorithm 7.4), that diagonal as
  H₀. An iteration is two matrix products with a [d, K] block. The margins X w + b are kept, so the line
  search (Newton on a convex function of one variable, inside a bracket) needs none.
- A column stops when its gradient in these units, H₀g, is at most `tol` times its coefficients (Euclidean
  norms). Their relative error is then 1 to 10 times tol, up to 100 times where a weak penalty (1e-5) meets
  separable labels. The result is fixed there and the column leaves the batch: it does not depend on which
  others are slow.

Products run in the dtype of the features; coefficients are returned in float64.

Closed forms: the difference of the class means, and Fisher's discriminant with one factorisation for all
columns.

Pitfalls: the penalty is not invariant to scale, so `solve` wants features standardised on the training rows;
margins are distances only in raw units. `logistic` sees to both. On a busy machine two BLAS threads can be
ten times slower than one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from counterprobe.progress import UserError

# A logit nearer to 0 than this is no answer: at the optimum of an additive representation the weights of an
# XOR are 0 up to rounding.
TIE = 1e-5
# Share of the mean variance of a feature that `lda` adds to the covariance: enough for an inverse where there
# are fewer texts than dimensions, too little to matter elsewhere.
LDA_RIDGE = 1e-4
# Correction pairs of L-BFGS: 4 cost easy columns up to a tenth more iterations, 20 save hardly any.
HISTORY = 6
# The line search ends when the slope has fallen to this share of what it was at the start.
SLOPE_LEFT = 0.5
# Newton needs one or two trials; halving a bracket that starts far off needs more.
MAX_TRIALS = 30
# Converged columns leave when they are more than this share of the batch: it costs a copy of those that stay.
LEAVING_SHARE = 0.1
# Columns are solved in blocks: so many floats in each [K, n] array (there are five), but BLOCK_COLUMNS at least.
BLOCK_FLOATS = {"cpu": 2**21, "cuda": 2**27}
BLOCK_COLUMNS = 64
# Largest over smallest variance of the features for which a float32 Gram matrix is good enough.
WELL_SCALED = 1e3
# Rows converted to float64 at a time.
ROWS_AT_ONCE = 8192


# --- standardising -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standardisation:
    """x ↦ (x − mean) / scale, fitted on training rows; a constant column has scale 1 and becomes 0."""

    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]

    def apply(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Same dtype and device as `features`; in float64 on the way, since means may dwarf deviations."""
        return ((features.double() - self.mean) / self.scale).to(features.dtype)

    def raw(
        self, coefficients: Float[Tensor, "d K"], intercepts: Float[Tensor, " K"]
    ) -> tuple[Float[Tensor, "d K"], Float[Tensor, " K"]]:
        """The same probe as a function of the features before standardisation (float64)."""
        raw = coefficients.double() / self.scale[:, None]
        return raw, intercepts.double() - self.mean @ raw


def standardise(train: Float[Tensor, "n d"]) -> Standardisation:
    """Mean and population standard deviation of each column, in float64.

    A column that varies by no more than the rounding of its own mean counts as constant: dividing by that
    would blow noise up to unit variance.
    """
    mean = train.mean(0, dtype=torch.float64)
    squares = sum(((rows.double() - mean) ** 2).sum(0) for rows in train.split(ROWS_AT_ONCE))
    scale = (squares / len(train)).sqrt()
    constant = scale <= 4 * torch.finfo(train.dtype).eps * mean.abs()
    return Standardisation(mean, torch.where(constant, 1.0, scale))


# --- logistic regression -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LogisticFit:
    """logit = x·coefficients + intercepts, x in the units of the features that were fitted; float64.

    `gradient_norm` is the Euclidean norm of the gradient of the objective in (w, b) at the solution.
    """

    coefficients: Float[Tensor, "d K"]
    intercepts: Float[Tensor, " K"]
    gradient_norm: Float[Tensor, " K"]
    iterations: Int[Tensor, " K"]
    converged: Bool[Tensor, " K"]


def solve(
    features: Float[Tensor, "n d"],
    labels: Bool[Tensor, "n K"],
    penalty: Float[Tensor, " K"] | float,
    *,
    tol: float = 1e-4,
    max_iterations: int = 200,
    weights: Float[Tensor, "n K"] | Bool[Tensor, "n K"] | None = None,
    start: LogisticFit | None = None,
    names: Sequence[str] | None = None,
) -> LogisticFit:
    """L2 logistic regression of every column of labels on one matrix of features (objective: see above).

    `tol` is about the relative error of the coefficients (see above); below 1e-6 it needs float64 features.
    `weights` are relative within a column; 0 or False drops the row as if it were not there. `start` is a fit
    to begin from (another penalty, an earlier revision). `names` name the columns in errors. A column that
    has not converged after `max_iterations` says so in `converged`: whether that matters is for the caller to
    judge.

    UserError: a feature that is not finite, a column with one class, a negative penalty or weight, and
    penalty 0 where a plane separates the classes, for then there is no minimum.
    """
    n, n_columns = labels.shape
    penalty = torch.as_tensor(penalty, dtype=features.dtype, device=features.device).expand(n_columns)
    if weights is not None:
        weights = weights.to(features.dtype)
    _check(features, labels, penalty, weights, names)
    basis = _eigenbasis(features)
    block = max(BLOCK_COLUMNS, BLOCK_FLOATS[features.device.type] // n)
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
    solution, gradient, iterations, converged = (torch.cat(part) for part in zip(*parts, strict=True))
    unbounded = (penalty == 0) & ~converged
    if unbounded.any():
        raise UserError(
            f"{_name(int(unbounded.nonzero()[0]), names)}: no minimum found with penalty 0, the classes are "
            "separable or nearly so; use a penalty > 0"
        )
    # The solver's intercept and gradient belong to centred and rotated features.
    coefficients = (basis.vectors @ solution[:, :-1].T).double()
    intercepts = solution[:, -1].double() - basis.mean @ coefficients
    to_intercept = gradient[:, -1:].double()
    towards_mean = basis.vectors.T.double() @ basis.mean
    outside = basis.mean.square().sum() - towards_mean.square().sum()
    inside = gradient[:, :-1] + to_intercept * towards_mean
    squares = inside.square().sum(1) + to_intercept[:, 0].square() * (1 + outside.clamp(min=0))
    return LogisticFit(coefficients, intercepts, squares.sqrt(), iterations, converged)


def _name(column: int, names: Sequence[str] | None) -> str:
    return f"label column {column}" if names is None else repr(names[column])


def _check(
    features: Tensor, labels: Tensor, penalty: Tensor, weights: Tensor | None, names: Sequence[str] | None
) -> None:
    # NaN and infinities survive into the extremes, which cost one pass instead of four.
    if not torch.isfinite(torch.stack(features.aminmax())).all():
        row, column = (~torch.isfinite(features)).nonzero()[0].tolist()
        value = float(features[row, column])
        raise UserError(f"features, row {row}, column {column}: {value}; probes need finite numbers")
    valid = torch.isfinite(penalty) & (penalty >= 0)
    if not valid.all():
        column = int((~valid).nonzero()[0])
        raise UserError(f"{_name(column, names)}: penalty {float(penalty[column])}; it must be a number ≥ 0")
    if weights is None:
        _refuse_one_class(labels.sum(0), torch.full_like(penalty, len(labels)), names)
        return
    valid = torch.isfinite(weights) & (weights >= 0)
    if not valid.all():
        row, column = (~valid).nonzero()[0].tolist()
        value = float(weights[row, column])
        raise UserError(f"{_name(column, names)}: row {row} has the weight {value}; it must be a number ≥ 0")
    _refuse_one_class((labels & (weights > 0)).sum(0), (weights > 0).sum(0), names)


def _refuse_one_class(positives: Int[Tensor, " K"], total: Tensor, names: Sequence[str] | None) -> None:
    one_class = (positives == 0) | (positives == total)
    if one_class.any():
        column = int(one_class.nonzero()[0])
        raise UserError(
            f"{_name(column, names)}: all {int(total[column])} training rows are "
            f"{bool(positives[column] > 0)}; a probe needs both classes"
        )


@dataclass(frozen=True)
class _Eigenbasis:
    """Centred features, rotated to make their Gram matrix diagonal; the last column is ones (intercept)."""

    rotated: Float[Tensor, "n size"]
    spectrum: Float[Tensor, " size"]
    negligible: Bool[Tensor, " size"]
    mean: Float[Tensor, " d"]
    vectors: Float[Tensor, "d rank"]


def _eigenbasis(features: Float[Tensor, "n d"]) -> _Eigenbasis:
    n, d = features.shape
    mean = features.mean(0, dtype=torch.float64).to(features.dtype)
    centred = features - mean
    span = None
    if n < d:
        # w stays in the span of the rows: there the eigenproblem costs n³, not d³.
        span, triangle = torch.linalg.qr(centred.T)
        centred = triangle.T
    power = centred.square().sum(0)
    # In float32 the rounding of the largest eigenvalue hides the directions of ill-scaled features: up to 50
    # times the iterations. For standardised ones float64 changes nothing and is a tenth of the time of a fit.
    ill_scaled = bool(power.any()) and bool(power.max() > WELL_SCALED * power[power > 0].min())
    precision = torch.float64 if ill_scaled else features.dtype
    gram = sum(rows.T @ rows for rows in (part.to(precision) for part in centred.split(ROWS_AT_ONCE)))
    vectors = torch.linalg.eigh(gram)[1].to(features.dtype)
    rotated = torch.cat([centred @ vectors, centred.new_ones(n, 1)], 1)
    # What the products will see, rather than the eigenvalues, which the rounding of `rotated` has changed.
    spectrum = rotated.square().sum(0)
    return _Eigenbasis(
        rotated=rotated,
        spectrum=spectrum,
        negligible=spectrum <= (32 * torch.finfo(features.dtype).eps) ** 2 * spectrum[:-1].max(),
        mean=mean.double(),
        vectors=vectors if span is None else span @ vectors,
    )


class _Batch:
    """The columns still being solved, one ROW each: the margins of a column are contiguous, which makes sums
    over texts and the removal of columns cheap.

    u are coefficients and intercept in the eigenbasis and against = −y(u·rotatedᵀ), so that the loss of a
    text is softplus(against) and p = σ(against) its slope: no 1 − p, in which rounding would drown sure
    answers. The objective is n times that of the module docstring, which spares a factor in every sum;
    weights sum to n.
    """

    def __init__(
        self,
        basis: _Eigenbasis,
        labels: Bool[Tensor, "n K"],
        penalty: Float[Tensor, " K"],
        weights: Float[Tensor, "n K"] | None,
        start: tuple[Float[Tensor, "d K"], Float[Tensor, " K"]] | None,
    ) -> None:
        n, size = basis.rotated.shape
        self.basis = basis
        self.wrong = 1 - 2 * labels.T.to(penalty.dtype, memory_format=torch.contiguous_format)
        self.weights = None if weights is None else (weights * (n / weights.sum(0))).T.contiguous()
        self.ridge = n * penalty[:, None] * (torch.arange(size, device=penalty.device) < size - 1)
        frozen = basis.negligible & (self.ridge == 0)
        self.frozen = frozen if frozen.any() else None
        self.p, self.along, self.scratch = (torch.empty_like(self.wrong) for _ in range(3))
        self.history: list[tuple[Tensor, Tensor]] = []
        self.u = torch.zeros_like(self.ridge)
        balance = (self.wrong if self.weights is None else self.wrong * self.weights).mean(1)
        self.u[:, -1] = torch.logit((1 - balance) / 2)
        self.against = self.u[:, -1:] * self.wrong
        if start is not None:
            self._move(*start)
        torch.sigmoid(self.against, out=self.p)
        self._differentiate()

    def _move(self, coefficients: Float[Tensor, "d K"], intercepts: Float[Tensor, " K"]) -> None:
        u = torch.empty_like(self.u)
        u[:, :-1] = (self.basis.vectors.T.double() @ coefficients.double()).T
        u[:, -1] = intercepts.double() + self.basis.mean @ coefficients.double()
        against = torch.mm(u, self.basis.rotated.T).mul_(self.wrong)
        # A start worse than none can saturate every text; from there steps are so long that no digit survives.
        better = (self._objective(u, against) < self._objective(self.u, self.against))[:, None]
        self.u, self.against = torch.where(better, u, self.u), torch.where(better, against, self.against)

    def _objective(self, u: Float[Tensor, "K size"], against: Float[Tensor, "K n"]) -> Float[Tensor, " K"]:
        return self._weighted(torch.nn.functional.softplus(against)).sum(1) + (self.ridge * u * u).sum(1) / 2

    def keep(self, columns: Int[Tensor, " kept"]) -> None:
        kept = ["wrong", "weights", "ridge", "frozen", "u", "against", "p", "gradient", "scaling", "newton"]
        for name in kept:
            if (values := getattr(self, name)) is not None:
                setattr(self, name, values.index_select(0, columns))
        for name in ("along", "scratch"):
            setattr(self, name, getattr(self, name)[: len(columns)])
        self.history = [
            (step.index_select(0, columns), change.index_select(0, columns)) for step, change in self.history
        ]

    def arrived(self, tol: float) -> Bool[Tensor, " K"]:
        """Columns whose step to the minimum is short beside their coefficients, or whose objective is within
        rounding of its minimum (1e-13 in float32): where the best coefficients are 0, no step is short."""
        coefficients = torch.linalg.vector_norm(self.u[:, :-1], dim=1)
        short = torch.linalg.vector_norm(self.newton, dim=1) <= tol * coefficients
        rounding = len(self.basis.rotated) * (4 * torch.finfo(self.u.dtype).eps) ** 2
        return short | (torch.linalg.vecdot(self.gradient, self.newton) <= rounding)

    def separated(self) -> Bool[Tensor, " K"]:
        """Columns whose boundary has every row of positive weight on its right side."""
        right = self.against < 0
        return (right if self.weights is None else right | (self.weights == 0)).all(1)

    def step(self, idle: Bool[Tensor, " K"]) -> None:
        """One iteration of L-BFGS for all columns; idle ones come along, but nothing waits for them."""
        direction = self._direction()
        slope = torch.linalg.vecdot(self.gradient, direction)
        if not (slope < 0).all():
            # Rounding can spoil the products with the history when hardly any gradient is left.
            direction = torch.where((slope < 0)[:, None], direction, -self.newton)
            slope = torch.linalg.vecdot(self.gradient, direction)
        step = direction.mul_(self._search(direction, slope, idle)[:, None])
        self.u += step
        previous = self.gradient
        self._differentiate()
        change = self.gradient - previous
        # The update does not depend on the length of a pair (s, y): with s·y = 1 no factor is left in its
        # loops, and a pair without curvature, which rounding can make, gets length 0.
        product = torch.linalg.vecdot(step, change)
        length = torch.where(product > 0, product.rsqrt(), 0)[:, None]
        self.history = [*self.history[-(HISTORY - 1) :], (step.mul_(length), change.mul_(length))]

    def _differentiate(self) -> None:
        """Gradient, the diagonal that stands for the inverse Hessian, and Newton's step with it, uphill."""
        residual = self._weighted(torch.mul(self.p, self.wrong, out=self.scratch))
        self.gradient = torch.addmm(self.ridge * self.u, residual, self.basis.rotated)
        mean_curvature = self._curvature() / len(self.basis.rotated)
        diagonal = torch.addcmul(self.ridge, mean_curvature[:, None], self.basis.spectrum)
        self.scaling = diagonal.reciprocal_()
        if self.frozen is not None:
            self.scaling.masked_fill_(self.frozen, 0)
        self.newton = self.scaling * self.gradient

    def _curvature(self, along: Float[Tensor, "K n"] | None = None) -> Float[Tensor, " K"]:
        """Sum of ω p(1 − p) along² over rows; along = 1 if not given."""
        # g ↦ g p(1 − p) in one pass over memory; written out it takes three.
        first = self.p.new_ones(1).expand_as(self.p) if along is None else along
        torch.ops.aten.sigmoid_backward.grad_input(first, self.p, grad_input=self.scratch)
        curvature = self._weighted(self.scratch)
        return (curvature if along is None else curvature.mul_(along)).sum(1)

    def _weighted(self, values: Float[Tensor, "K n"]) -> Float[Tensor, "K n"]:
        return values if self.weights is None else values.mul_(self.weights)

    def _direction(self) -> Float[Tensor, "K size"]:
        direction = self.gradient.neg()
        shares = []
        for step, change in reversed(self.history):
            share = torch.linalg.vecdot(step, direction)[:, None]
            direction.addcmul_(share, change, value=-1)
            shares.append(share)
        direction.mul_(self.scaling)
        for step, change in self.history:
            direction.addcmul_(shares.pop() - torch.linalg.vecdot(change, direction)[:, None], step)
        return direction

    def _search(
        self, direction: Float[Tensor, "K size"], slope: Float[Tensor, " K"], idle: Bool[Tensor, " K"]
    ) -> Float[Tensor, " K"]:
        """How far to go: Newton's method on each column's convex function of one variable, inside a bracket.

        Moves `against` and p along.
        """
        along = torch.mm(direction, self.basis.rotated.T, out=self.along).mul_(self.wrong)
        ridged = self.ridge * direction
        ridge_slope = torch.linalg.vecdot(ridged, self.u)
        ridge_curvature = torch.linalg.vecdot(ridged, direction)
        allowed = slope.abs().mul_(SLOPE_LEFT).masked_fill_(idle, math.inf)
        length = -slope / (self._curvature(along) + ridge_curvature)
        self.against.addcmul_(length[:, None], along)
        low = high = None
        for _ in range(MAX_TRIALS):
            torch.sigmoid(self.against, out=self.p)
            here = self._weighted(torch.mul(self.p, along, out=self.scratch)).sum(1).add_(ridge_slope)
            here.addcmul_(length, ridge_curvature)
            unfinished = here.abs() > allowed
            if not unfinished.any():
                break
            if low is None:
                low, high = torch.zeros_like(length), torch.full_like(length, math.inf)
            low, high = torch.where(here < 0, length, low), torch.where(here > 0, length, high)
            proposal = length - here / (self._curvature(along) + ridge_curvature)
            middle = torch.where(high.isinf(), 4 * length, (low + high) / 2)
            proposal = torch.where((proposal > low) & (proposal < high), proposal, middle)
            change = torch.where(unfinished, proposal - length, 0)
            self.against.addcmul_(change[:, None], along)
            length += change
        return length


def _descend(
    basis: _Eigenbasis,
    labels: Bool[Tensor, "n K"],
    penalty: Float[Tensor, " K"],
    weights: Float[Tensor, "n K"] | None,
    start: tuple[Float[Tensor, "d K"], Float[Tensor, " K"]] | None,
    tol: float,
    max_iterations: int,
) -> tuple[Float[Tensor, "K size"], Float[Tensor, "K size"], Int[Tensor, " K"], Bool[Tensor, " K"]]:
    """Solutions and gradients in the eigenbasis, iterations, converged."""
    batch = _Batch(basis, labels, penalty, weights, start)
    solution, gradient = torch.empty_like(batch.u), torch.empty_like(batch.u)
    iterations = torch.full_like(penalty, max_iterations, dtype=torch.int64)
    converged = torch.zeros_like(penalty, dtype=torch.bool)
    active = torch.arange(len(penalty), device=penalty.device)
    idle, unpenalised = torch.zeros_like(converged), penalty == 0
    for iteration in range(max_iterations + 1):
        arrived = batch.arrived(tol)
        stop = ~idle
        if iteration < max_iterations:
            stop &= arrived | (unpenalised & batch.separated()) if unpenalised.any() else arrived
        if stop.any():
            which = stop.nonzero()[:, 0]
            leaving = active[which]
            solution[leaving], gradient[leaving] = batch.u[which], batch.gradient[which]
            iterations[leaving], converged[leaving] = iteration, arrived[which]
            idle = idle | stop
            n_idle = int(idle.sum())
            if n_idle == len(idle):
                break
            if n_idle > LEAVING_SHARE * len(idle):
                stay = (~idle).nonzero()[:, 0]
                batch.keep(stay)
                active, idle, unpenalised = active[stay], idle[stay], unpenalised[stay]
        batch.step(idle)
    return solution, gradient / len(labels), iterations, converged


# --- probes of raw activations -----------------------------------------------------------------------------


@dataclass(frozen=True)
class LinearProbe:
    """logit = x·directions + intercepts, x in raw activation units, one column a label; float64.

    converged: False where the solver stopped at its last iteration; closed forms always are.
    """

    directions: Float[Tensor, "d K"]
    intercepts: Float[Tensor, " K"]
    converged: Bool[Tensor, " K"]


def logistic(
    features: Float[Tensor, "n d"],
    labels: Bool[Tensor, "n K"],
    penalty: Float[Tensor, " K"] | float,
    *,
    weights: Float[Tensor, "n K"] | Bool[Tensor, "n K"] | None = None,
    names: Sequence[str] | None = None,
    tol: float = 1e-4,
) -> LinearProbe:
    """The reference probe: `solve` on features standardised by these rows (of any weight), in raw units."""
    standardisation = standardise(features)
    fit = solve(standardisation.apply(features), labels, penalty, weights=weights, names=names, tol=tol)
    return LinearProbe(*standardisation.raw(fit.coefficients, fit.intercepts), fit.converged)


def mass_mean(
    features: Float[Tensor, "n d"], labels: Bool[Tensor, "n K"], *, names: Sequence[str] | None = None
) -> LinearProbe:
    """μ₁ − μ₀, boundary through the midpoint of the means (Marks and Tegmark 2024, arXiv:2310.06824, sec. 5).

    Its logits are no log-odds. UserError where a column has one class.
    """
    difference, midpoint, _ = _class_means(features, labels, names)
    return _closed_form(difference, midpoint)


def lda(
    features: Float[Tensor, "n d"],
    labels: Bool[Tensor, "n K"],
    *,
    ridge: float = LDA_RIDGE,
    names: Sequence[str] | None = None,
) -> LinearProbe:
    """Fisher's discriminant (Σ + ρI)⁻¹(μ₁ − μ₀), boundary through the midpoint of the means.

    Σ is the pooled within-class covariance (divided by n), ρ = `ridge` × the mean variance of a feature, the
    same for all columns. With δ = μ₁ − μ₀, π the share of class 1, the total covariance is
    T = Σ + π(1 − π)δδᵀ, so by Sherman and Morrison (1950) the direction is v / (1 − π(1 − π) δ·v) with
    v = (T + ρI)⁻¹δ: ONE Cholesky factor of T + ρI serves every column, permuted labels included. float64.

    UserError where a column has one class, where ρ = 0 and the features are collinear.
    """
    difference, midpoint, positive = _class_means(features, labels, names)
    n, d = features.shape
    mean = features.mean(0, dtype=torch.float64)
    centred = (rows.double() - mean for rows in features.split(ROWS_AT_ONCE))
    total = sum(rows.T @ rows for rows in centred) / n
    largest = total.diagonal().max()
    if largest == 0:
        # All texts alike, as at the embedding of a token that they all share: there is no direction to find.
        return _closed_form(torch.zeros_like(difference), midpoint)
    total.diagonal().add_(ridge * total.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(total)
    # Rounding alone can carry a singular matrix through; its pivots show it.
    if failed or factor.diagonal().min() ** 2 <= d * torch.finfo(torch.float64).eps * largest:
        raise UserError(f"lda: the covariance of {d} features over {n} texts is singular; use a ridge > 0")
    solved = torch.cholesky_solve(difference, factor)
    directions = solved / (1 - positive * (1 - positive) * (difference * solved).sum(0))
    return _closed_form(directions, midpoint)


def _closed_form(directions: Float[Tensor, "d K"], midpoint: Float[Tensor, "d K"]) -> LinearProbe:
    """The boundary goes through the midpoint of the class means."""
    converged = torch.ones(directions.shape[1], dtype=torch.bool, device=directions.device)
    return LinearProbe(directions, -(midpoint * directions).sum(0), converged)


def _class_means(
    features: Float[Tensor, "n d"], labels: Bool[Tensor, "n K"], names: Sequence[str] | None
) -> tuple[Float[Tensor, "d K"], Float[Tensor, "d K"], Float[Tensor, " K"]]:
    """μ₁ − μ₀, (μ₁ + μ₀)/2 and the share of class 1, float64."""
    count = labels.sum(0)
    _refuse_one_class(count, torch.full_like(count, len(labels)), names)
    pairs = zip(features.split(ROWS_AT_ONCE), labels.split(ROWS_AT_ONCE), strict=True)
    sums = sum(rows.double().T @ columns.double() for rows, columns in pairs)
    positive = sums / count
    negative = (features.sum(0, dtype=torch.float64)[:, None] - sums) / (len(labels) - count)
    return positive - negative, (positive + negative) / 2, count.double() / len(labels)


# --- scores ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextScores:
    """What a probe says of each text, to be averaged over whatever texts a number is about; float64.

    decision  the logit w·x + b
    correct   1 or 0; ½ where |logit| < 1e-5
    bits      1 − log-loss in bits: 0 for a coin, at most 1, no floor; means something for log-odds only
    margin    y(w·x + b)/‖w‖, the signed distance from the boundary in activation units; 0 where w = 0
    """

    decision: Float[Tensor, "n K"]
    correct: Float[Tensor, "n K"]
    bits: Float[Tensor, "n K"]
    margin: Float[Tensor, "n K"]


def score_texts(probe: LinearProbe, features: Float[Tensor, "n d"], labels: Bool[Tensor, "n K"]) -> TextScores:
    """Score raw features of held-out texts against their labels."""
    decision = torch.addmm(probe.intercepts, features.double(), probe.directions)
    signed = torch.where(labels, decision, -decision)
    correct = torch.where(signed.abs() < TIE, 0.5, (signed > 0).double())
    bits = 1 - torch.nn.functional.softplus(-signed) / math.log(2)
    length = probe.directions.norm(dim=0)
    return TextScores(decision, correct, bits, torch.where(length > 0, signed / length, 0.0))
