"""Intervals and exact tests that know what the independent units of a factorial design are.

Texts of one item are near-copies of one another, and texts that share a carrier (a name, a suffix word) share
whatever the model does to that token. So nothing here treats a text as a unit.

*Two-way bootstrap.* A resample draws items and carriers with replacement, independently, and the weight of a
text is the product of how often its item and its carriers were drawn:

    w_text = w_item · Π w_carrier,      estimate = Σ w·value / Σ w

(the "pigeonhole" bootstrap: McCullagh 2000, Bernoulli 6(2); Owen 2007, Ann. Appl. Stat. 1(2),
https://arxiv.org/abs/0712.1111; any number of ways: Owen and Eckles 2012, https://arxiv.org/abs/1106.2125).
Three choices are ours:

- g units are drawn g - 1 at a time: with g draws the variance of a mean comes out (g - 1)/g too small, which
  costs two points of coverage at eight carriers.
- Where every item lies within one carrier (an item of a factorial design uses one pair of names) the carriers
  alone are drawn: their draw already moves the items, and multiplying by an item's own draw would count the
  items' noise three times.
- `bootstrap(..., units=g)` also takes the quantiles of Student's t instead of the normal's
  ("expanded percentile", Hesterberg 2015, https://arxiv.org/abs/1411.5279).

*Walsh contrasts.* With x the activations, s_f = +1 where factor f is True and -1 where it is False,

    D_t = 2^k · mean over the cells of  Π_{f in t} s_f · x          (k factors in t)

per item: μ₁ - μ₀ for a basic factor, δ = μ₁₁ - μ₁₀ - μ₀₁ + μ₀₀ for a pair. Every other parity cancels within
the item, exactly. The plug-in ‖mean D‖² is biased upwards by noise; the U-statistic

    (‖Σ Dᵢ‖² - Σ ‖Dᵢ‖²) / (n (n - 1))

is not. With clusters, products of two items that share a cluster are left out as well: then interactions that
belong to single carriers (each name its own, nothing shared) contribute nothing in expectation.

*Sign flips.* If the contrast has no part common to all units, the units' contrasts are symmetric about 0, and
‖Σ εᵤ Dᵤ‖² has the same law for all signs ε. A flip acts on the n × n Gram matrix, never on d dimensions.

Pitfalls: flipping single items asks whether THESE names interact with the factor; flipping carriers asks
whether names do. Fewer than six units cannot reach p = .05 whatever the data (2^(1-g) is the smallest
p-value).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from counterprobe import designs
from counterprobe.designs import Design
from counterprobe.progress import UserError

# 2^12 sign patterns: beyond it drawing them costs less than listing them.
MOST_ENUMERATED = 12
# Floats of one block of resamples × columns: 32 MB, whatever the number of columns.
BLOCK = 1 << 23


@dataclass(frozen=True)
class Interval:
    """Estimates with the ends of their confidence intervals, one entry per column."""

    estimate: Float[np.ndarray, "*K"]
    lower: Float[np.ndarray, "*K"]
    upper: Float[np.ndarray, "*K"]


@dataclass(frozen=True)
class ContrastTests:
    """Probe-free inference for every target of a design, in the order of `targets`.

    norm: ‖D‖² by the U-statistic over item units, with its interval. p_items: sign flips of item units. Per
    carrier factor, NaN where the target does not contain the factor: norm_carriers leaves out pairs that
    share a carrier, p_carriers exchanges the class within, or over, whole carrier units.
    """

    targets: tuple[str, ...]
    norm: Interval
    p_items: Float[np.ndarray, "T"]
    norm_carriers: dict[str, Interval]
    p_carriers: dict[str, Float[np.ndarray, "T"]]
    note: str


def two_way_weights(
    items: Int[np.ndarray, "n"],
    carriers: Int[np.ndarray, "n"] | Int[np.ndarray, "n c"] | None,
    n_resamples: int,
    rng: np.random.Generator,
    strata: Int[np.ndarray, "n"] | None = None,
) -> Float[np.ndarray, "R n"]:
    """Weights of every text in every resample (float32); their products over items and carriers, see above.

    `items` are the units that stay together: items, or couples where a couple exchanges its wrong countries.
    `carriers`: one column per carrier factor of the target; None resamples items only. `strata` (topics):
    items are drawn within each. A resample in which nothing was drawn is drawn again. UserError for a single
    unit.
    """
    columns = np.empty((len(items), 0), int) if carriers is None else np.reshape(carriers, (len(items), -1))
    ways = [(column, None) for column in columns.T]
    if not any(_nested(items, column) for column in columns.T):
        ways.insert(0, (items, strata))
    weights = np.ones((0, len(items)), np.float32)
    while len(weights) < n_resamples:
        drawn = np.ones((n_resamples - len(weights), len(items)), np.float32)
        for units, layers in ways:
            drawn *= _draws(units, layers, len(drawn), rng)
        weights = np.concatenate([weights, drawn[drawn.any(axis=1)]])
    return weights


def shared_weights(
    weights: Float[np.ndarray, "R n"],
) -> tuple[Float[np.ndarray, "R u"], Int[np.ndarray, " n"]]:
    """The distinct columns of weights, and which of them is each text's: texts of a unit are drawn together.

    What is resampled for hundreds of columns is then summed over the texts of a unit once.
    """
    _, first, of_text = np.unique(
        np.ascontiguousarray(weights.T).view(np.dtype((np.void, weights.itemsize * len(weights)))).ravel(),
        return_index=True,
        return_inverse=True,
    )
    return np.ascontiguousarray(weights[:, first]), of_text


def bootstrap(
    values: Float[np.ndarray, "n K"],
    weights: Float[np.ndarray, "R u"],
    confidence: float = 0.95,
    units: int | None = None,
    of_text: Int[np.ndarray, " n"] | None = None,
) -> Interval:
    """Mean of each column with its percentile interval. Differences are paired by passing differences.

    For accuracy (ties as 1/2), bits, margins: anything that is a mean over texts. NaN marks texts a column
    has no value for. `units`: number of units of the way with the fewest; widens the percentiles as
    Student's t does. `of_text`: the column of `weights` that is each text's (`shared_weights`); None: one a text.
    """
    lower, upper = _percentiles(confidence, units)
    known = ~np.isnan(values)
    summed = _members(of_text, weights)
    total_of_unit = summed(np.where(known, values, 0).astype(np.float32))
    count_of_unit = summed((known if not known.all() else known[:, :1]).astype(np.float32))
    parts = []
    for block in _blocks(values.shape[1], len(weights)):
        # One column of counts stands for all where no value is missing.
        count = weights @ (count_of_unit[:, block] if count_of_unit.shape[1] == values.shape[1] else count_of_unit)
        parts.append(_quantiles(_ratio(weights @ total_of_unit[:, block], count), lower, upper))
    ends = _rounded(parts)
    return Interval(_ratio(np.nansum(values, axis=0), known.sum(axis=0)), ends[0], ends[1])


def balanced_bootstrap(
    values: Float[np.ndarray, "n K"],
    labels: Bool[np.ndarray, "n K"],
    weights: Float[np.ndarray, "R u"],
    confidence: float = 0.95,
    units: int | None = None,
    of_text: Int[np.ndarray, " n"] | None = None,
) -> Interval:
    """As `bootstrap`, for the mean of the two class means: balanced accuracy where a label is rare."""
    lower, upper = _percentiles(confidence, units)
    known = ~np.isnan(values)
    filled = np.where(known, values, 0).astype(np.float32)
    summed = _members(of_text, weights)
    estimate, parts = np.zeros(values.shape[1]), []
    for block in _blocks(values.shape[1], len(weights)):
        draws: float | np.ndarray = 0.0
        for side in (labels[:, block], ~labels[:, block]):
            shown = (known[:, block] & side).astype(np.float32)
            draws = draws + _ratio(weights @ summed(filled[:, block] * shown), weights @ summed(shown)) / 2
            estimate[block] += _ratio((filled[:, block] * shown).sum(axis=0), shown.sum(axis=0)) / 2
        parts.append(_quantiles(draws, lower, upper))
    ends = _rounded(parts)
    return Interval(estimate, ends[0], ends[1])


def cell_bootstrap(
    values: Float[np.ndarray, "n K"],
    cells: Int[np.ndarray, "n K"],
    weights: Float[np.ndarray, "R u"],
    confidence: float = 0.95,
    units: int | None = None,
    of_text: Int[np.ndarray, " n"] | None = None,
) -> tuple[Interval, Interval]:
    """Means of each column over the texts of each of its cells [K, C], and the lowest of them [K].

    `cells` numbers the cells of each column from 0. The interval of the lowest is built so that its ends mean what a
    verdict needs: its lower end is the lowest of the cells' own lower bounds, so `lower > level` holds if and only if
    the lower bound of EACH cell lies above that level (an intersection-union test: no correction for the number of
    cells is due). Its upper end is the lowest of the cells' upper bounds at (1 - confidence) / 2 / cells, for there
    the cell is picked after looking. Percentiles of the resampled minimum would be no interval at all: they are
    biased downwards.
    """
    n_cells = int(cells.max()) + 1
    apart = np.where(cells[:, :, None] == np.arange(n_cells), values[:, :, None], np.nan).reshape(len(values), -1)
    each = bootstrap(apart, weights, confidence, units, of_text)
    strict = bootstrap(apart, weights, 1 - (1 - confidence) / n_cells, units, of_text)
    estimate, lower, upper, strict_upper = (
        end.reshape(-1, n_cells) for end in (each.estimate, each.lower, each.upper, strict.upper)
    )
    lowest = Interval(*(np.nanmin(end, axis=1) for end in (estimate, lower, strict_upper)))
    return Interval(estimate, lower, upper), lowest


def auroc_bootstrap(
    scores: Float[np.ndarray, "n K"],
    labels: Bool[np.ndarray, "n K"],
    weights: Float[np.ndarray, "R u"],
    confidence: float = 0.95,
    units: int | None = None,
    folds: Int[np.ndarray, "n"] | None = None,
    of_text: Int[np.ndarray, " n"] | None = None,
) -> Interval:
    """Area under the ROC curve, ties as 1/2, with its percentile interval.

    AUROC = Σ over pairs (positive i, negative j) of w_i w_j [s_i > s_j] / Σ w_i w_j, and weights are shared
    by the texts of a unit: so the pairs are counted once per pair of units, and a resample is a quadratic
    form in them. With `folds`, only pairs within one fold count, since probes of different folds score on
    different scales.
    """
    distinct, unit_of = shared_weights(weights) if of_text is None else (weights, of_text)
    w = distinct.astype(np.float64)
    parts = []
    for rows in [np.flatnonzero(folds == f) for f in np.unique(folds)] if folds is not None else [slice(None)]:
        here, local = np.unique(unit_of[rows], return_inverse=True)
        parts.append((rows, np.ix_(here, here), np.eye(len(here))[local]))
    lower, upper = _percentiles(confidence, units)
    columns = []
    for score, label in zip(scores.T, labels.T, strict=True):
        wins, pairs = np.zeros((2, w.shape[1], w.shape[1]))
        for rows, block, member in parts:
            s, positive = score[rows], label[rows]
            won = 0.5 + 0.5 * np.sign(s[positive][:, None] - s[~positive])
            wins[block] += member[positive].T @ won @ member[~positive]
            pairs[block] += np.outer(member[positive].sum(axis=0), member[~positive].sum(axis=0))
        draws = _ratio(((w @ wins) * w).sum(axis=1), ((w @ pairs) * w).sum(axis=1))
        columns.append([wins.sum() / pairs.sum(), *_quantiles(draws[:, None], lower, upper)[:, 0]])
    table = np.array(columns).reshape(-1, 3)
    return Interval(table[:, 0], table[:, 1], table[:, 2])


def inference_units(design: Design, target: str) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n c"] | None]:
    """Item units and carrier units to resample for a target: couples, and the carriers of the factors it
    contains.

    Couples, since two items that exchange their wrong countries are not independent where `match` is read.
    None for the carriers where no factor of the target has two units to draw from.
    """
    columns = [
        design.carriers[factor]
        for factor in designs.canonical(design, target).split("^")
        if factor in design.carriers and len(np.unique(design.carriers[factor])) > 1
    ]
    return design.couples, np.stack(columns, axis=1) if columns else None


def fewest_units(items: Int[np.ndarray, "n"], carriers: Int[np.ndarray, "n c"] | None) -> int:
    """Units of the way with the fewest of those that `two_way_weights` draws: what an interval rests on."""
    if carriers is None:
        return len(np.unique(items))
    ways = list(carriers.T)
    if not any(_nested(items, way) for way in ways):
        ways.append(items)
    return min(len(np.unique(way)) for way in ways)


def walsh_contrasts(
    x: Float[np.ndarray, "n d"], design: Design, targets: Sequence[str] | None = None
) -> Float[np.ndarray, "T i d"]:
    """Contrast D of every target (default: all, in the order of `designs.targets`) for every item, float64.

    Complete items: the formula at the top, from the item's own cell means, in one matrix product. Incomplete
    items (`contrast_note` says so): β from least squares on all parities with item fixed effects, which is
    the contrast of the cell means after item effects, and Dᵢ = 2^k (β + n (ZᵀZ)⁻¹ Zᵢᵀ eᵢ) with residuals e:
    the mean over items is the estimate and the spread its sampling error. On complete items both are the
    same numbers. NaN for a target that the layout does not determine (a factor constant within all items).
    """
    names = list(designs.targets(design)) if targets is None else [designs.canonical(design, t) for t in targets]
    n_items, n_cells = len(design.item_names), 2 ** len(design.factors)
    index = design.items * n_cells + designs.cells(design)
    counts = np.bincount(index, minlength=n_items * n_cells)
    if not counts.all():
        return _adjusted_contrasts(np.asarray(x, np.float64), design, names)
    signs = np.stack([_cell_signs(design, name) for name in names])
    means = _sums(np.asarray(x, np.float64), index) / counts[:, None]
    scale = np.array([2.0 ** (name.count("^") + 1) / n_cells for name in names])
    # [T, cells] times [cells, items·d]: one product for every contrast of every item.
    stacked = means.reshape(n_items, n_cells, -1).transpose(1, 0, 2).reshape(n_cells, -1)
    return ((signs * scale[:, None]) @ stacked).reshape(len(names), n_items, -1)


def contrast_note(design: Design) -> str:
    """What a table must say about contrasts of this design: empty where every item is complete."""
    pairs = np.unique(design.items * 2 ** len(design.factors) + designs.cells(design))
    complete = len(pairs) == len(design.item_names) * 2 ** len(design.factors)
    return "" if complete else "incomplete items: contrasts of cell means after item fixed effects"


def interaction_norm(
    contrasts: Float[np.ndarray, "*T i d"],
    clusters: Int[np.ndarray, "i"] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """‖D‖² by the U-statistic over clusters of items (default: items), with a jackknife interval.

    The square of activation units; 0 in expectation, and so negative half of the time, where nothing is
    there. Interval: delete one cluster, quantiles of Student's t with clusters - 1 degrees of freedom. A
    resample with replacement pairs a cluster with its own copy, which brings back exactly the bias the
    U-statistic removes; the jackknife does not, and where D = 0 (the statistic is degenerate there) its
    variance is too large, never too small (Efron and Stein 1981), so the interval covers at least what it
    says.
    """
    gram = _gram(contrasts, clusters)
    sizes = np.ones(gram.shape[-1]) if clusters is None else np.unique(clusters, return_counts=True)[1]
    if gram.shape[-1] < 3:
        raise UserError(f"a norm of interactions needs at least 3 independent units, not {gram.shape[-1]}")
    total, own, rows = gram.sum(axis=(-2, -1)), gram.diagonal(axis1=-2, axis2=-1), gram.sum(axis=-1)
    pairs = sizes.sum() ** 2 - (sizes**2).sum()
    estimate = (total - own.sum(axis=-1)) / pairs
    # Leaving out cluster c removes its row and its column, 2·(row - own) off the diagonal.
    without = (total - own.sum(axis=-1))[..., None] - 2 * (rows - own)
    without = without / (pairs - 2 * sizes * (sizes.sum() - sizes))
    g = gram.shape[-1]
    error = np.sqrt((g - 1) / g * ((without - without.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1))
    return _symmetric(estimate, special.stdtrit(g - 1, (1 + confidence) / 2) * error)


def sign_flip_p(
    contrasts: Float[np.ndarray, "*T i d"],
    clusters: Int[np.ndarray, "i"] | None,
    n_draws: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "*T"]:
    """p-value of "the contrast has no part common to all clusters", by flipping the sign of whole clusters.

    clusters None: every item by itself. All 2^(g-1) patterns (ε and -ε give one value) where g - 1 ≤ 12, and
    then the p-value is exact; else (b + 1)/(n + 1) over random ones (Phipson and Smyth 2010). NaN contrasts
    give NaN.
    """
    return _flip_p(_gram(contrasts, clusters), n_draws, rng)


def carrier_p(
    x: Float[np.ndarray, "n d"],
    design: Design,
    target: str,
    factor: str,
    n_draws: int,
    rng: np.random.Generator,
) -> float:
    """p-value of "which class a carrier belongs to does not matter for the target", for a factor with
    carriers.

    With C_u = Σ over the texts of unit u of sign(target) · x, item effects and every parity without the
    factor removed, the statistic is ‖Σ_u C_u‖². Units that hold both classes (pairs of names) exchange them,
    which flips C_u; units of one class (a column of names) have their classes permuted, keeping how many
    there are of each.
    """
    name = designs.canonical(design, target)
    if factor not in name.split("^"):
        raise ValueError(f"target '{name}' does not contain factor '{factor}'")
    others = [t for t in designs.targets(design) if factor not in t.split("^")]
    z = np.stack([_signs(designs.parity(design, t)) for t in [name, *others]], axis=1)
    z, x = _within(z, design.items), _within(np.asarray(x, np.float64), design.items)
    # The projection removes nuisance effects from sign and activation alike; on complete items it changes
    # nothing.
    sign = z[:, 0] - z[:, 1:] @ np.linalg.lstsq(z[:, 1:], z[:, 0], rcond=None)[0]
    residual = x - z[:, 1:] @ np.linalg.lstsq(z[:, 1:], x, rcond=None)[0]
    names, units = np.unique(design.carriers[factor], return_inverse=True)
    parts = _sums(sign[:, None] * residual, units)
    positive = np.bincount(units, weights=design.factors[factor]) / np.bincount(units)
    if np.isin(positive, (0, 1)).all():
        classes = np.where(positive == 1, 1.0, -1.0)
        gram = (classes[:, None] * parts) @ (classes[:, None] * parts).T
        flips = rng.permuted(np.broadcast_to(classes, (n_draws, len(names))), axis=1)
        observed, draws = classes @ gram @ classes, ((flips @ gram) * flips).sum(axis=1)
        return float((1 + _at_least(draws, observed)) / (n_draws + 1))
    return float(_flip_p((parts @ parts.T)[None], n_draws, rng)[0])


def contrast_tests(
    x: Float[np.ndarray, "n d"],
    design: Design,
    n_draws: int,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> ContrastTests:
    """Norm, interval and p-values of every target of a design at one site; see `ContrastTests`."""
    names = tuple(designs.targets(design))
    d, note = walsh_contrasts(x, design), contrast_note(design)
    couple_of = np.zeros(len(design.item_names), np.int64)
    couple_of[design.items] = design.couples
    norm_carriers, p_carriers = {}, {}
    for factor, units in design.carriers.items():
        if len(np.unique(units)) < 3:
            continue
        inside = np.array([factor in name.split("^") for name in names])
        p_carriers[factor] = np.full(len(names), np.nan)
        nested = _nested(design.items, units)
        unit_of = np.zeros(len(design.item_names), np.int64)
        unit_of[design.items] = units
        if nested and not note:
            # Complete items within units: exchanging a unit's classes flips the contrasts of its items.
            p_carriers[factor][inside] = sign_flip_p(d[inside], unit_of, n_draws, rng)
        else:
            for t in np.flatnonzero(inside):
                p_carriers[factor][t] = carrier_p(x, design, names[t], factor, n_draws, rng)
        if nested:
            norm = interaction_norm(d, unit_of, confidence)
            masked = [np.where(inside, end, np.nan) for end in (norm.estimate, norm.lower, norm.upper)]
            norm_carriers[factor] = Interval(*masked)
    return ContrastTests(
        names,
        interaction_norm(d, couple_of, confidence),
        sign_flip_p(d, couple_of, n_draws, rng),
        norm_carriers,
        p_carriers,
        note,
    )


def minimal_detectable(
    n_items: int,
    texts_per_item: int,
    order: int,
    d: int,
    clusters: int | None = None,
    alpha: float = 0.05,
    power: float = 0.9,
) -> float:
    """Smallest ‖D‖, in within-cell standard deviations of one dimension, that the sign-flip test finds with
    `power`.

    D has noise variance v = 4^order / texts_per_item in each of d dimensions, so U has variance 2 d v² / (n
    (n - 1)) without an effect and 4 ‖D‖² v / n more with one; the answer solves ‖D‖² = z_α sd₀ + z_power
    sd₁. Activations are not isotropic: d is then the participation ratio, and every dimension the model does
    not use makes it smaller. With `clusters` the n items come in that many units, equal but for the same
    noise; units that interact each in their own way make it larger. inf where 2^(1 - units) > alpha: no data
    could be significant.
    """
    units = n_items if clusters is None else clusters
    if units < 2 or 2.0 ** (1 - units) > alpha:
        return float("inf")
    v = 4.0**order / texts_per_item * units / n_items
    z_alpha, z_power = -special.ndtri(alpha), special.ndtri(power)
    null = np.sqrt(2 * d / (units * (units - 1))) * v
    square = z_alpha * null
    # A contraction: the standard deviation grows with the square root of what it is solved for.
    for _ in range(200):
        square = z_alpha * null + z_power * np.sqrt(null**2 + 4 * square * v / units)
    return float(np.sqrt(square))


def t_interval(samples: Float[np.ndarray, "k *K"], confidence: float = 0.95) -> Interval:
    """Mean over the first axis (seeds) with Student's interval. UserError for fewer than two samples.

    Never a bootstrap here: over 3 or 5 seeds a percentile interval of 95% covers about 74% and 83%.
    """
    k = len(samples)
    if k < 2:
        raise UserError(f"an interval over seeds needs at least 2 of them, not {k}; raise the number of seeds")
    mean = np.mean(samples, axis=0, dtype=np.float64)
    half = special.stdtrit(k - 1, (1 + confidence) / 2) * np.std(samples, axis=0, ddof=1) / np.sqrt(k)
    return _symmetric(mean, half)


def prediction_bound(samples: Float[np.ndarray, "k *K"], confidence: float = 0.95) -> Float[np.ndarray, "*K"]:
    """mean + t s √(1 + 1/k): what one more draw of a control exceeds with probability 1 - confidence
    (one-sided).

    Covers exactly under normality, for every k ≥ 2; the maximum of k draws is exceeded with probability 1/(k
    + 1).
    """
    k = len(samples)
    if k < 2:
        raise UserError(f"a prediction bound needs at least 2 seeds, not {k}; raise controls.seeds")
    spread = np.std(samples, axis=0, ddof=1) * np.sqrt(1 + 1 / k)
    return np.asarray(np.mean(samples, axis=0, dtype=np.float64) + special.stdtrit(k - 1, confidence) * spread)


def holm(p: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
    """p-values adjusted for m tests by Holm's step-down rule (1979); NaN stays NaN and is not counted as a
    test."""
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    stepped = np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def equivalence(
    lower: Float[np.ndarray, "*K"], upper: Float[np.ndarray, "*K"], margin: float, level: float = 0.0
) -> Bool[np.ndarray, "*K"]:
    """Whether the whole interval lies inside level ± margin: "no effect worth the name". False where an end
    is NaN.

    With a 95% interval this is two one-sided tests at 2.5% each (Schuirmann 1987).
    """
    return (np.asarray(lower) > level - margin) & (np.asarray(upper) < level + margin)


def _symmetric(estimate: np.ndarray | np.floating, half: np.ndarray | np.floating) -> Interval:
    # Means over the only axis are numpy scalars, which are no arrays.
    return Interval(np.asarray(estimate), np.asarray(estimate - half), np.asarray(estimate + half))


def _draws(
    units: Int[np.ndarray, "n"],
    strata: Int[np.ndarray, "n"] | None,
    n_resamples: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "R n"]:
    layers = np.zeros_like(units) if strata is None else strata
    weights = np.empty((n_resamples, len(units)), np.float32)
    several = False
    for layer in np.unique(layers):
        here = layers == layer
        names, index = np.unique(units[here], return_inverse=True)
        several |= len(names) > 1
        draws = rng.multinomial(max(len(names) - 1, 1), np.full(len(names), 1 / len(names)), size=n_resamples)
        # Strata keep their share of the whole though each draws one less than it has.
        weights[:, here] = draws[:, index] * (len(names) / max(len(names) - 1, 1))
    if not several:
        raise UserError("a bootstrap over one unit says nothing; give more items or carriers, or none of these")
    return weights


def _nested(inner: Int[np.ndarray, "n"], outer: Int[np.ndarray, "n"]) -> bool:
    pairs = np.unique(np.stack([inner, outer], axis=1), axis=0)
    return len(pairs) == len(np.unique(inner))


def _members(
    of_text: Int[np.ndarray, " n"] | None, weights: Float[np.ndarray, "R u"]
) -> Callable[[Float[np.ndarray, "n K"]], Float[np.ndarray, "u K"]]:
    """Sums over the texts that share a column of weights; each is its own where `of_text` is None."""
    if of_text is None:
        return lambda values: values
    member = (np.arange(weights.shape[1])[:, None] == of_text).astype(np.float32)
    return lambda values: member @ values


def _blocks(n_columns: int, n_resamples: int) -> list[slice]:
    width = max(1, BLOCK // max(n_resamples, 1))
    return [slice(start, min(start + width, n_columns)) for start in range(0, n_columns, width)]


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is 0 (a resample without any such text)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def _percentiles(confidence: float, units: int | None) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    if units is not None:
        tail = float(special.ndtr(special.stdtrit(max(units - 1, 1), tail)))
    return tail, 1 - tail


def _quantiles(draws: Float[np.ndarray, "R K"], lower: float, upper: float) -> Float[np.ndarray, "2 K"]:
    # Sorting along the contiguous axis is several times faster than down the columns.
    columns = np.ascontiguousarray(draws.T)
    quantile = np.nanquantile if np.isnan(columns).any() else np.quantile
    return quantile(columns, (lower, upper), axis=1)


def _rounded(parts: Sequence[np.ndarray]) -> Float[np.ndarray, "2 K"]:
    # Sums are float32: without rounding, an accuracy of 1 in every draw has ends at 1.0000001.
    ends = np.concatenate(parts, axis=1) if parts else np.empty((2, 0))
    return np.round(ends.astype(np.float64), 6)


def _signs(labels: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    return np.where(labels, 1.0, -1.0)


def _product_signs(design: Design, name: str) -> Float[np.ndarray, "n"]:
    return np.prod([_signs(design.factors[factor]) for factor in name.split("^")], axis=0)


def _cell_signs(design: Design, name: str) -> Float[np.ndarray, "cells"]:
    cells = np.arange(2 ** len(design.factors))
    bits = {factor: (cells >> i) & 1 for i, factor in enumerate(design.factors)}
    return np.prod([2.0 * bits[factor] - 1 for factor in name.split("^")], axis=0)


def _sums(values: Float[np.ndarray, "n *k"], groups: Int[np.ndarray, "n"]) -> Float[np.ndarray, "g *k"]:
    """Sums over groups 0 … g-1, each of which must occur; an order of magnitude faster than np.add.at."""
    order = np.argsort(groups, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(groups))[:-1]])
    return np.add.reduceat(values[order], starts, axis=0)


def _within(values: Float[np.ndarray, "n k"], items: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n k"]:
    _, index, counts = np.unique(items, return_inverse=True, return_counts=True)
    return values - (_sums(values, index) / counts[:, None])[index]


def _adjusted_contrasts(x: Float[np.ndarray, "n d"], design: Design, names: list[str]) -> Float[np.ndarray, "T i d"]:
    every = list(designs.targets(design))
    z = _within(np.stack([_product_signs(design, name) for name in every], axis=1), design.items)
    x = _within(x, design.items)
    inverse = np.linalg.pinv(z.T @ z, rcond=1e-10, hermitian=True)
    beta = inverse @ (z.T @ x)
    residual = x - z @ beta
    # A parity is determined where the layout can tell it from all others and from the items.
    determined = np.abs((z.T @ z) @ inverse - np.eye(len(every))).max(axis=0) < 1e-6
    n_items = len(design.item_names)
    out = np.empty((len(names), n_items, x.shape[1]))
    for row, name in enumerate(names):
        t = every.index(name)
        influence = _sums((z @ inverse[:, t])[:, None] * residual, design.items)
        out[row] = 2.0 ** (name.count("^") + 1) * (beta[t] + n_items * influence)
        if not determined[t]:
            out[row] = np.nan
    return out


def _gram(contrasts: Float[np.ndarray, "*T i d"], clusters: Int[np.ndarray, "i"] | None) -> np.ndarray:
    d = np.asarray(contrasts, np.float64)
    if clusters is not None:
        _, index = np.unique(clusters, return_inverse=True)
        d = np.moveaxis(_sums(np.moveaxis(d, -2, 0), index), 0, -2)
    return d @ np.swapaxes(d, -1, -2)


def _flip_p(gram: Float[np.ndarray, "*T g g"], n_draws: int, rng: np.random.Generator) -> Float[np.ndarray, "*T"]:
    g = gram.shape[-1]
    flat = gram.reshape(-1, g, g)
    observed = flat.sum(axis=(1, 2))
    exact = g - 1 <= MOST_ENUMERATED
    n = 2 ** (g - 1) if exact else n_draws
    reached = np.zeros(len(flat))
    step = max(1, BLOCK // (4 * g))
    for start in range(0, n, step):
        size = min(step, n - start)
        if exact:
            bits = (np.arange(start, start + size)[:, None] >> np.arange(g)) & 1
        else:
            bits = rng.integers(0, 2, size=(size, g), dtype=np.int8)
        flips = 1.0 - 2.0 * bits
        for t, matrix in enumerate(flat):
            reached[t] += _at_least(((flips @ matrix) * flips).sum(axis=1), observed[t])
    p = reached / n if exact else (reached + 1) / (n + 1)
    return np.where(np.isnan(observed), np.nan, p).reshape(gram.shape[:-2])


def _at_least(draws: Float[np.ndarray, "R"], observed: float) -> int:
    # The identity pattern must count as reaching itself: sums of the same terms differ in their last bits.
    return int((draws >= observed - 1e-9 * abs(observed)).sum())
