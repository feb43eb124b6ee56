"""How the features of a design lie in activation space: by exact inference, and by what probes generalise to.

*Exact inference.* Activations of a design are a sum of Walsh effects, x = x̄_item + Σ_t s_t β_t, with s_t = ±1 the
parity t of a text and β_t = D_t / 2^|t| its coefficient (D_t: `statistics.walsh_contrasts`). Everything below is a
function of the inner products ⟨β_t, β_u⟩, each estimated by its U-statistic: only products of two DIFFERENT units
(couples of items; carriers where the target has them) enter, so noise and what belongs to a single unit drop out in
expectation where a plug-in would add them. Intervals: delete one unit, Student's t (`statistics.interaction_norm`).

    salience            ‖β_t‖² / V, V the variance of activations within items: the share of V that is the parity's common
                        effect (exact ANOVA: with one text a cell, the shares of all parities, common and particular to
                        items, add up to 1). Isotropic noise gives 0.
    variance_share      the same with products of an item with itself left in: common effect and the items' own together.
                        Adds up to 1 over parities; isotropic noise gives 1 / (texts of an item − 1).
    salience_ratio      salience of a pair a ^ b over the mean salience of a and b
    interaction_ratio   ‖δ‖² / ‖d_a‖², a the first factor in design order; interaction_ratio_b: / ‖d_b‖².
                        d_a = μ₁ − μ₀ = 2β_a and δ = μ₁₁ − μ₁₀ − μ₀₁ + μ₀₀ = 4β_ab.
    gain_share          ‖Pδ‖² / ‖δ‖², P onto span(d_a, d_b): gain modulation, in which one feature makes the other's
                        direction longer or shorter. ‖Pδ‖² = vᵀG⁻¹v with v = (⟨d_a, δ⟩, ⟨d_b, δ⟩); a square of an
                        estimate is biased upwards, so one v comes from one half of the units and one from the other,
                        averaged over many halvings. A random direction gives 2/d.
    own_direction       1 − gain_share
    conditional_cosine  cosine of a-given-b = d_a + δ/2 with a-given-not-b = d_a − δ/2 (target `a|b`), of b with respect
                        to a (`b|a`), and the mean of the two (`a^b`). Additive: 1.
    parallelism         Bernardi et al. 2020: mean cosine between coding vectors. A pairing of the parity t flips one of its
                        factors, f, and leaves the others: 2^(m-1) vectors from f-flipped texts where t is False to
                        those where it is True. The largest over the pairings f ∈ t, as there (over pairings of the
                        design; theirs are over all). One pairing for a basic feature. 1: parallel; noise gives 0.

*Probes*, all columns one batched logistic regression a fold, at the middle penalty, under the first protocol of the
design that holds something out: no text of an item (or carrier) of the training texts is ever scored.

    ccgp                cross-condition generalisation: trained where another factor f is False and scored on held-out
                        texts where it is True, and the reverse (target `t|f`); mean over all f outside t (target t)
    shattering_dimensionality   mean accuracy over balanced dichotomies of the 2^m cells (a seeded sample; all of them
                        where there are fewer), as there; shattered_share: share of them read better than .75
    relative_margin     mean signed distance y(w·x + b)/‖w‖ from the boundary over the RMS distance from the mean
    margin_ratio        margin of a pair over the mean margin of its two factors

Source: Bernardi, Benna, Rigotti, Munuera, Fusi and Salzman 2020, Cell 183(4), doi:10.1016/j.cell.2020.09.031. Their
nulls are not repeated here: the ladder of randomised weights stands in every table.

A number that the data cannot give is NaN, and its note says why: constant activations; a target that the layout does
not determine; fewer than three units; a denominator whose interval contains 0 (‖δ‖² for its shares, a coding vector for
its cosines, a basic margin for its ratio). Nothing here inverts a covariance, so neither a singular one nor d > n is a
special case.

Pitfalls: debiased shares and cosines can leave [0, 1]. A cosine of true directions, freed from noise, is larger than the
cosine of estimated ones. A target with two factors that have carriers is judged by the units of the one with fewer.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import special
from torch import Tensor

from counterprobe import designs, label_controls, probe_grid, probes, progress, statistics, tables
from counterprobe.activations import Store
from counterprobe.designs import Design
from counterprobe.revisions import step_of
from counterprobe.splits import Fold

PROBE = "geometry"
# Random halvings of the units that a gain share is averaged over: more change the third digit.
HALVINGS = 16
# Units that leave two in either half when one is deleted.
FEWEST_FOR_HALVES = 6
# Eigenvalues of the correlation of d_a and d_b below this are noise: the two span one direction.
COLLINEAR = 0.02
# A dichotomy read better than any threshold on the two features of an XOR.
SHATTERED = 0.75

CONSTANT = "constant activations"
UNDETERMINED = "not determined by the layout"
FEW = "too few independent units"
NO_DELTA = "the interval of ‖δ‖² contains 0"
NO_BASIC = "the effect of a basic feature is not told from 0"
NO_CODING = "a coding vector is not told from 0"
NO_MARGIN = "the margin of the basic features is not told from 0"


@dataclass(frozen=True)
class Moments:
    """Inner products of Walsh coefficients by U-statistics over g units, whole and with each unit left out.

    coefficients [g, T, d] are sums over the items of a unit, sizes [g] its numbers of items; inner [T, T] and without
    [g, T, T] are ⟨β_t, β_u⟩; variance and variance_without [g] the mean within-item variance; raw [T] and raw_without
    [g, T] the mean of ‖β_t‖² over items, NaN for incomplete items. A squared length up to `rounding` is none: what a
    model computes twice differs in its last bits.
    """

    targets: tuple[str, ...]
    coefficients: Float[np.ndarray, "g T d"]
    sizes: Int[np.ndarray, " g"]
    inner: Float[np.ndarray, "T T"]
    without: Float[np.ndarray, "g T T"]
    variance: float
    variance_without: Float[np.ndarray, " g"]
    raw: Float[np.ndarray, " T"]
    raw_without: Float[np.ndarray, "g T"]
    rounding: float

    def index(self, target: str) -> int:
        return self.targets.index(target)


@dataclass(frozen=True)
class Number:
    """A number with its interval, and why it is NaN where it is."""

    estimate: float
    lower: float
    upper: float
    note: str = ""


@dataclass(frozen=True)
class Reading:
    """What held-out texts say, NaN where a text was never held out.

    correct and margin [n, T] of the targets; dichotomies [n, P]; ccgp [n, C], one column for each of `splits`.
    """

    correct: Float[np.ndarray, "n T"]
    margin: Float[np.ndarray, "n T"]
    dichotomies: Float[np.ndarray, "n P"]
    ccgp: Float[np.ndarray, "n C"]
    splits: tuple[tuple[str, str], ...]


# --- exact inference ---------------------------------------------------------------------------------------


def units_of(design: Design, target: str) -> tuple[str, Int[np.ndarray, " i"]]:
    """What a target's intervals are over, and the unit of each item: `carriers`, where items lie within the carriers of
    one of its factors (the factor with the fewest), else `items`, which are couples."""
    found = [
        design.carriers[factor]
        for factor in target.split("^")
        if factor in design.carriers and _of_items(design, design.carriers[factor]) is not None
    ]
    if not found:
        return "items", _of_items(design, design.couples)
    return "carriers", _of_items(design, min(found, key=lambda units: len(np.unique(units))))


def moments(x: Float[np.ndarray, "n d"], design: Design, units: Int[np.ndarray, " i"]) -> Moments:
    """Every inner product of the Walsh coefficients of a site; `units` are those of the items. At least three units."""
    names = tuple(designs.targets(design))
    scale = np.array([2.0 ** (name.count("^") + 1) for name in names])
    beta = statistics.walsh_contrasts(x, design) / scale[:, None, None]
    _, index, sizes = np.unique(units, return_inverse=True, return_counts=True)
    member = np.eye(len(sizes))[index].T
    sums = np.moveaxis(member @ beta, 1, 0)
    total = sums.sum(axis=0)
    own = sums @ sums.transpose(0, 2, 1)
    gram = total @ total.T - own.sum(axis=0)
    n = sizes.sum()
    pairs = n**2 - (sizes**2).sum()
    # Less a unit: its row and its column of the products between units.
    cross = total @ sums.transpose(0, 2, 1)
    less = gram - cross - cross.transpose(0, 2, 1) + 2 * own
    variance = member @ _within_item_variance(x, design)
    complete = not statistics.contrast_note(design)
    raw = member @ (beta**2).sum(axis=2).T if complete else np.full((len(sizes), len(names)), np.nan)
    return Moments(
        targets=names,
        coefficients=sums,
        sizes=sizes,
        inner=gram / pairs,
        without=less / (pairs - 2 * sizes * (n - sizes))[:, None, None],
        variance=float(variance.sum() / n),
        variance_without=(variance.sum() - variance) / (n - sizes),
        raw=raw.sum(axis=0) / n,
        raw_without=(raw.sum(axis=0) - raw) / (n - sizes)[:, None],
        rounding=_rounding(x),
    )


def salience(m: Moments, target: str, confidence: float = 0.95) -> Number:
    """Share of the within-item variance that is the common effect of a parity."""
    t = m.index(target)
    return _jackknife(m.inner[t, t] / m.variance, m.without[:, t, t] / m.variance_without, confidence)


def variance_share(m: Moments, target: str, confidence: float = 0.95) -> Number:
    """Share of the within-item variance that is a parity's, common to items or not."""
    t = m.index(target)
    return _jackknife(m.raw[t] / m.variance, m.raw_without[:, t] / m.variance_without, confidence)


def salience_ratio(m: Moments, pair: str, confidence: float = 0.95) -> Number:
    """Salience of a pair over the mean salience of its factors."""
    a, b, ab = _pair(m, pair)
    if not _told_from_zero(m, a, confidence) and not _told_from_zero(m, b, confidence):
        return _nothing(NO_BASIC)
    return _ratio(m, confidence, lambda s: 2 * s[..., ab, ab] / (s[..., a, a] + s[..., b, b]))


def interaction_ratio(m: Moments, pair: str, which: int = 0, confidence: float = 0.95) -> Number:
    """‖δ‖² / ‖d_a‖² for the first factor of a pair (which = 0) or the second (1)."""
    *basic, ab = _pair(m, pair)
    a = basic[which]
    if not _told_from_zero(m, a, confidence):
        return _nothing(NO_BASIC)
    return _ratio(m, confidence, lambda s: 4 * s[..., ab, ab] / s[..., a, a])


def gain_share(m: Moments, pair: str, seed: int = 0, confidence: float = 0.95) -> Number:
    """Share of ‖δ‖² of a pair that lies inside span(d_a, d_b); `seed` draws the halvings."""
    a, b, ab = _pair(m, pair)
    if not _told_from_zero(m, ab, confidence):
        return _nothing(NO_DELTA)
    known = [t for t in (a, b) if _told_from_zero(m, t, confidence)]
    if not known:
        return _nothing(NO_BASIC)
    if len(m.sizes) < FEWEST_FOR_HALVES:
        return _nothing(FEW)
    v, v_without = _products_of_halves(m, known, ab, np.random.default_rng(seed))
    grid = np.ix_(known, known)
    inside = _quadratic(v, m.inner[grid]) / m.inner[ab, ab]
    inside_without = _quadratic(v_without, m.without[:, *grid]) / m.without[:, ab, ab]
    number = _jackknife(inside, inside_without, confidence)
    return number if len(known) == 2 else Number(number.estimate, number.lower, number.upper, NO_BASIC)


def conditional_cosine(m: Moments, pair: str, which: int | None = None, confidence: float = 0.95) -> Number:
    """Cosine of one factor given the other with the same given not the other; None: mean over both factors of a pair."""
    *basic, ab = _pair(m, pair)
    wanted = basic if which is None else [basic[which]]

    def cosine(s: np.ndarray) -> np.ndarray:
        each = []
        for a in wanted:
            own, twice = s[..., a, a] + s[..., ab, ab], 2 * s[..., a, ab]
            # A replicate may lose a norm that the whole has.
            lengths = np.sqrt(np.maximum((own + twice) * (own - twice), np.finfo(float).tiny))
            each.append((s[..., a, a] - s[..., ab, ab]) / lengths)
        return np.asarray(np.mean(each, axis=0))

    for a in wanted:
        for sign in (1, -1):
            norm = _jackknife(
                *(s[..., a, a] + s[..., ab, ab] + 2 * sign * s[..., a, ab] for s in (m.inner, m.without)), confidence
            )
            if not norm.lower > m.rounding:
                return _nothing(NO_CODING)
    return _ratio(m, confidence, cosine)


def parallelism(m: Moments, target: str, confidence: float = 0.95) -> Number:
    """Mean cosine between the coding vectors of a parity, for its best pairing by one factor."""
    best = None
    for flipped in target.split("^"):
        vectors = _coding(m.targets, target, flipped)
        whole, without = (vectors @ s @ vectors.T for s in (m.inner, m.without))
        norms = [_jackknife(whole[c, c], without[:, c, c], confidence) for c in range(len(vectors))]
        if not all(norm.lower > m.rounding for norm in norms):
            continue
        number = _jackknife(_mean_cosine(whole), _mean_cosine(without), confidence)
        if best is None or number.estimate > best.estimate:
            best = number
    return best or _nothing(NO_CODING)


def _coding(targets: Sequence[str], target: str, flipped: str) -> Float[np.ndarray, "C T"]:
    """Half the coding vectors of a parity over the other factors' conditions, as combinations of the coefficients."""
    factors = [name for name in targets if "^" not in name]
    others = [factor for factor in factors if factor != flipped]
    conditions = 1.0 - 2.0 * ((np.arange(2 ** len(others))[:, None] >> np.arange(len(others))) & 1)

    def sign(parity: str) -> np.ndarray:
        columns = [conditions[:, others.index(f)] for f in parity.split("^") if f != flipped]
        return np.prod([np.ones(len(conditions)), *columns], axis=0)

    columns = [sign(u) * sign(target) * (flipped in u.split("^")) for u in targets]
    return np.stack(columns, axis=1)


def _mean_cosine(inner: Float[np.ndarray, "*g C C"]) -> Float[np.ndarray, "*g"]:
    norms = np.sqrt(np.maximum(np.diagonal(inner, axis1=-2, axis2=-1), np.finfo(float).tiny))
    cosines = inner / norms[..., :, None] / norms[..., None, :]
    count = inner.shape[-1]
    total = cosines.sum(axis=(-2, -1)) - np.trace(cosines, axis1=-2, axis2=-1)
    return np.asarray(total / (count * (count - 1)))


def _products_of_halves(
    m: Moments, basic: Sequence[int], ab: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "2 S k"], Float[np.ndarray, "2 g S k"]]:
    """⟨β_a, β_ab⟩ by the U-statistic within either half of the units, for every halving; and less one unit each."""
    g = len(m.sizes)
    halves = rng.permuted(np.broadcast_to(np.arange(g) < g // 2, (HALVINGS, g)), axis=1)
    halves = np.stack([halves, ~halves]).astype(np.float64)
    direction, delta = m.coefficients[:, basic].transpose(1, 0, 2), m.coefficients[:, ab]
    # [k, 2, S, d] and [2, S, d]: sums over the units of a half.
    summed, summed_delta = np.tensordot(halves, direction, ([2], [1])).transpose(2, 0, 1, 3), halves @ delta
    own = (direction * delta).sum(axis=2)
    gram = (summed * summed_delta).sum(axis=3) - np.tensordot(own, halves, ([1], [2]))
    cross = summed @ delta.T + summed_delta @ direction.transpose(0, 2, 1)[:, None]
    n, squares = halves @ m.sizes, halves @ m.sizes**2
    pairs = (n**2 - squares)[..., None]
    pairs_less = pairs - 2 * m.sizes * (n[..., None] - m.sizes)
    v = gram[..., None] / pairs
    less = (gram[..., None] - cross + 2 * own[:, None, None]) / np.where(halves > 0, pairs_less, 1)
    without = np.where(halves > 0, less, v)
    return v[..., 0].transpose(1, 2, 0), without.transpose(1, 3, 2, 0)


def _quadratic(v: Float[np.ndarray, "2 *g S k"], gram: Float[np.ndarray, "*g k k"]) -> Float[np.ndarray, "*g"]:
    """v₁ᵀ G⁻¹ v₂, mean over halvings; directions that are one but for noise count once."""
    norms = np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), np.finfo(float).tiny))
    values, vectors = np.linalg.eigh(gram / norms[..., :, None] / norms[..., None, :])
    usable = values > COLLINEAR
    inverse = (vectors * np.where(usable, 1 / np.where(usable, values, 1), 0)[..., None, :]) @ np.swapaxes(
        vectors, -1, -2
    )
    first, second = v / norms[..., None, :]
    return np.asarray(((first @ inverse) * second).sum(axis=-1).mean(axis=-1))


def _pair(m: Moments, pair: str) -> tuple[int, int, int]:
    a, b = pair.split("^")
    return m.index(a), m.index(b), m.index(pair)


def _told_from_zero(m: Moments, t: int, confidence: float) -> bool:
    return _jackknife(m.inner[t, t], m.without[:, t, t], confidence).lower > m.rounding


def _ratio(m: Moments, confidence: float, of: Any) -> Number:
    return _jackknife(of(m.inner), of(m.without), confidence)


def _jackknife(estimate: float | np.ndarray, without: Float[np.ndarray, " g"], confidence: float) -> Number:
    g = len(without)
    half = special.stdtrit(g - 1, (1 + confidence) / 2) * np.sqrt((g - 1) / g * ((without - without.mean()) ** 2).sum())
    return Number(float(estimate), float(estimate - half), float(estimate + half))


def _nothing(note: str) -> Number:
    return Number(np.nan, np.nan, np.nan, note)


def _of_items(design: Design, labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " i"] | None:
    """The label of each item; None where texts of one item differ."""
    of_item = np.zeros(len(design.item_names), np.int64)
    of_item[design.items] = labels
    return of_item if (of_item[design.items] == labels).all() else None


def _within_item_variance(x: Float[np.ndarray, "n d"], design: Design) -> Float[np.ndarray, " i"]:
    x = np.asarray(x, np.float64)
    counts = np.bincount(design.items, minlength=len(design.item_names))
    order = np.argsort(design.items, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    means = np.add.reduceat(x[order], starts, axis=0) / counts[:, None]
    deviations = ((x - means[design.items]) ** 2).sum(axis=1)
    return np.bincount(design.items, weights=deviations, minlength=len(counts)) / counts


def constant(x: Float[np.ndarray, "n d"], design: Design) -> bool:
    """Whether texts of an item differ by no more than the rounding of their own float32 activations."""
    return bool(_within_item_variance(x, design).mean() <= _rounding(x))


def _rounding(x: Float[np.ndarray, "n d"]) -> float:
    """Squared length below which a difference of two float32 activations is rounding."""
    return float((4 * np.finfo(np.float32).eps) ** 2 * (np.asarray(x, np.float64) ** 2).sum(axis=1).mean())


# --- probes ------------------------------------------------------------------------------------------------


def read_out(
    features: Float[Tensor, "n d"],
    design: Design,
    folds: Sequence[Fold],
    dichotomies: Bool[np.ndarray, "n P"],
    penalty: float,
) -> Reading:
    """Targets, dichotomies and every cross-condition split, held out fold by fold; one batched problem a fold.

    A split whose training part has one class in some fold is left out of `splits`.
    """
    targets = designs.targets(design)
    plain = np.concatenate([np.stack(list(targets.values()), axis=1), dichotomies], axis=1)
    splits = tuple(
        (target, factor)
        for target, labels in targets.items()
        for factor in design.factors
        if factor not in target.split("^") and _two_classes(labels, design.factors[factor], folds)
    )
    crossed = np.stack([targets[target] for target, _ in splits for _ in (0, 1)], axis=1) if splits else plain[:, :0]
    trained_on = [design.factors[factor] == side for _, factor in splits for side in (False, True)]
    shown = np.stack([np.ones(len(plain), bool)] * plain.shape[1] + trained_on, axis=1)
    y = torch.as_tensor(np.concatenate([plain, crossed], axis=1), device=features.device)
    weights = torch.as_tensor(shown, device=features.device)
    correct = np.full(shown.shape, np.nan)
    margin = np.full((len(plain), len(targets)), np.nan)
    for fold in folds:
        fit = probes.logistic(features[fold.train], y[fold.train], penalty, weights=weights[fold.train])
        scored = probes.score_texts(fit, features[fold.test], y[fold.test])
        correct[fold.test] = scored.correct.cpu().numpy()
        margin[fold.test] = scored.margin[:, : len(targets)].cpu().numpy()
    # Each text is scored by the probe that was trained on the other side of the factor.
    sides = np.where(shown[:, plain.shape[1] :], np.nan, correct[:, plain.shape[1] :])
    sides = sides.reshape(len(plain), len(splits), 2)
    return Reading(
        correct=correct[:, : len(targets)],
        margin=margin,
        dichotomies=correct[:, len(targets) : plain.shape[1]],
        ccgp=np.where(np.isnan(sides[:, :, 0]), sides[:, :, 1], sides[:, :, 0]),
        splits=splits,
    )


def _two_classes(labels: Bool[np.ndarray, " n"], factor: Bool[np.ndarray, " n"], folds: Sequence[Fold]) -> bool:
    return all(
        len(np.unique(labels[fold.train][factor[fold.train] == side])) == 2 for fold in folds for side in (False, True)
    )


def balanced_dichotomies(design: Design, count: int, seed: int) -> Bool[np.ndarray, "n P"]:
    """Labels of `count` random balanced labellings of the cells, or of all of them; none where a feature is rare."""
    if design.priors:
        return np.zeros((len(design.texts), 0), bool)
    rng = np.random.default_rng([seed, 4])
    drawn = label_controls.dichotomies(list(design.factors), (), count, rng, at_least=1)
    return drawn.T[designs.cells(design)]


# --- the table ---------------------------------------------------------------------------------------------


def measure(
    store: Store, design: Design, spec: Mapping[str, Any], cell: Mapping[str, str], *, device: str
) -> pd.DataFrame:
    """Geometry of every site (position, BOS, layer) of every unit of a store, for every target.

    spec: `probes` (penalties, dichotomies, outer_folds, seed), `statistics` (resamples, confidence) and
    `design.protocols`. `cell` names model, revision, weights and design and goes into every row. Rows of probes are
    missing where no protocol holds anything out, and the log says so.
    """
    settings = {**spec["probes"], "inner_folds": 0}
    protocol, folds = next(
        (found for found in probe_grid.testable(design, spec["design"]["protocols"], settings) if found[1]), (None, ())
    )
    resampling = probe_grid.resample(design, list(designs.targets(design)), spec["statistics"], settings["seed"])
    dichotomies = balanced_dichotomies(design, settings["dichotomies"], settings["seed"])
    penalty = settings["penalties"][len(settings["penalties"]) // 2]
    rows: list[dict[str, Any]] = []
    for (embeddings, seed), (position, bos, layer) in progress.bar(list(probe_grid.sites(store)), label="geometry"):
        x = np.asarray(store.matrix(position, bos, layer, embeddings, seed), dtype=np.float32)
        site = {
            **tables.NOT_APPLICABLE,
            **cell,
            "step": step_of(cell["revision"]),
            "embeddings": embeddings,
            "seed": seed,
            "position": position,
            "bos": bos,
            "layer": layer,
        }
        rows += exact_rows(x, design, spec["statistics"]["confidence"], settings["seed"], site)
        if protocol:
            features = torch.tensor(x, device=device)
            reading = read_out(features, design, folds, dichotomies, penalty)
            here = {**site, "protocol": protocol, "probe": probe_grid.REFERENCE}
            rows += probe_rows(reading, x, design, resampling, here)
    return tables.frame(rows)


def exact_rows(
    x: Float[np.ndarray, "n d"], design: Design, confidence: float, seed: int, site: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Salience, interaction, gain, cosines and parallelism of every target at one site."""
    nothing, layout = CONSTANT if constant(x, design) else "", _layout(design)
    complete = not statistics.contrast_note(design)
    per_item = np.bincount(design.items)
    noise = 1 / (per_item.mean() - 1)
    known: dict[bytes, Moments] = {}
    for target in designs.targets(design):
        protocol, units = units_of(design, target)
        key = units.tobytes()
        n_units = len(np.unique(units))
        why = nothing or (FEW if n_units < 3 else "")
        if not why and key not in known:
            known[key] = moments(x, design, units)
        m = known.get(key)
        if m is not None and np.isnan(m.inner[m.index(target), m.index(target)]):
            why = UNDETERMINED
        for name, score, level, of in _exact(target, x.shape[1], noise, seed, confidence, complete):
            number = _nothing(why) if why or m is None else of(m)
            if np.isnan(number.estimate) and not number.note:
                number = _nothing(UNDETERMINED)
            yield {
                **site,
                "target": name,
                "protocol": protocol,
                "probe": PROBE,
                "score": score,
                "level": level,
                "estimate": number.estimate,
                "lower": number.lower,
                "upper": number.upper,
                "n_texts": len(x),
                "n_groups": n_units,
                "note": _notes(design, target, layout, number.note),
            }


def _exact(
    target: str, width: int, noise: float, seed: int, confidence: float, complete: bool
) -> Iterator[tuple[str, str, float, Any]]:
    """(name, score, level, how) of every exact number of a target."""
    yield target, "salience", 0.0, lambda m: salience(m, target, confidence)
    if complete:
        yield target, "variance_share", noise, lambda m: variance_share(m, target, confidence)
    yield target, "parallelism", 0.0, lambda m: parallelism(m, target, confidence)
    if target.count("^") != 1:
        return
    a, b = target.split("^")
    yield target, "salience_ratio", 0.0, lambda m: salience_ratio(m, target, confidence)
    yield target, "interaction_ratio", 0.0, lambda m: interaction_ratio(m, target, 0, confidence)
    yield target, "interaction_ratio_b", 0.0, lambda m: interaction_ratio(m, target, 1, confidence)
    yield target, "gain_share", 2 / width, lambda m: gain_share(m, target, seed, confidence)
    yield target, "own_direction", 1 - 2 / width, lambda m: _rest(gain_share(m, target, seed, confidence))
    for name, which in ((target, None), (f"{a}|{b}", 0), (f"{b}|{a}", 1)):
        yield name, "conditional_cosine", 1.0, lambda m, which=which: conditional_cosine(m, target, which, confidence)


def _rest(share: Number) -> Number:
    return Number(1 - share.estimate, 1 - share.upper, 1 - share.lower, share.note)


def probe_rows(
    reading: Reading,
    x: Float[np.ndarray, "n d"],
    design: Design,
    resampling: probe_grid.Resampling,
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Generalisation across conditions, shattering and margins, with intervals over the units of each target."""
    targets = list(designs.targets(design))
    spread = 0.0
    if not constant(x, design):
        spread = float(np.sqrt(((x - x.mean(axis=0, dtype=np.float64)) ** 2).sum(axis=1).mean()))
    for group in resampling.groups:
        columns = group.columns
        wanted: list[_Mean] = []
        for target in (targets[column] for column in columns):
            row = {**site, "target": target, "note": _notes(design, target)}
            wanted += _ccgp(reading, design, target, row)
            wanted += _margins(reading, targets, target, spread, row)
        if targets[-1] in [targets[column] for column in columns] and reading.dichotomies.shape[1]:
            # The parity of all factors: its units are those of every target.
            wanted += _shattering(reading.dichotomies, site)
        tested = ~np.isnan(reading.correct[:, columns]).all(axis=1)
        units = group.fewest(tested)
        # One product of weights and values for all numbers of these units.
        values = np.stack([mean.values for mean in wanted], axis=1)[tested]
        means = statistics.bootstrap(values, group.weights, resampling.confidence, units, group.of_text[tested])
        for place, mean in enumerate(wanted):
            if mean.hidden:
                continue
            ends = [float(end[place] + mean.shift) for end in (means.estimate, means.lower, means.upper)]
            note = mean.row["note"]
            if mean.above_zero is not None and not means.lower[place + mean.above_zero] > 0:
                ends, note = [np.nan] * 3, _joined(note, NO_MARGIN)
            yield {
                **mean.row,
                "estimate": ends[0],
                "lower": ends[1] if mean.interval else np.nan,
                "upper": ends[2] if mean.interval else np.nan,
                "n_texts": int(tested.sum()),
                "n_groups": units,
                "note": note,
            }


@dataclass(frozen=True)
class _Mean:
    """A row whose number is shift + the mean over texts of values [n]. above_zero: how many columns further on stands a
    mean that must be above 0, or the number means nothing; hidden: there for that only."""

    row: Mapping[str, Any]
    values: np.ndarray
    shift: float = 0.0
    above_zero: int | None = None
    hidden: bool = False
    interval: bool = True


def _ccgp(reading: Reading, design: Design, target: str, row: Mapping[str, Any]) -> Iterator[_Mean]:
    places = [place for place, (of, _) in enumerate(reading.splits) if of == target]
    if not places:
        return
    share = designs.parity(design, target).mean()
    row = {**row, "score": "ccgp", "level": max(share, 1 - share)}
    for place in places:
        yield _Mean({**row, "target": f"{target}|{reading.splits[place][1]}"}, reading.ccgp[:, place])
    yield _Mean(row, reading.ccgp[:, places].mean(axis=1))


def _margins(
    reading: Reading, targets: Sequence[str], target: str, spread: float, row: Mapping[str, Any]
) -> Iterator[_Mean]:
    own = reading.margin[:, targets.index(target)]
    row = {**row, "level": 0.0}
    if spread == 0:
        row = {**row, "note": _joined(row["note"], CONSTANT)}
        yield _Mean({**row, "score": "relative_margin"}, np.zeros(len(own)), np.nan)
        if target.count("^") == 1:
            yield _Mean({**row, "score": "margin_ratio"}, np.zeros(len(own)), np.nan)
        return
    yield _Mean({**row, "score": "relative_margin"}, own / spread)
    if target.count("^") != 1:
        return
    basic = reading.margin[:, [targets.index(factor) for factor in target.split("^")]].mean(axis=1)
    scale = np.nanmean(basic)
    if not scale > 0:
        yield _Mean(
            {**row, "score": "margin_ratio", "note": _joined(row["note"], NO_MARGIN)}, np.zeros(len(own)), np.nan
        )
        return
    ratio = np.nanmean(own) / scale
    # The interval of a ratio of means, to first order: that of the mean of own − ratio · basic, in units of basic.
    yield _Mean({**row, "score": "margin_ratio"}, (own - ratio * basic) / scale, ratio, above_zero=1)
    yield _Mean(row, basic, hidden=True)


def _shattering(correct: Float[np.ndarray, "n P"], site: Mapping[str, Any]) -> Iterator[_Mean]:
    row = {**site, "target": "none", "note": f"{correct.shape[1]} balanced dichotomies, each up to its sign"}
    each = correct.mean(axis=1)
    yield _Mean({**row, "score": "shattering_dimensionality", "level": 0.5}, each)
    share = float((np.nanmean(correct, axis=0) > SHATTERED).mean())
    yield _Mean({**row, "score": "shattered_share", "level": 0.0}, np.zeros(len(each)), share, interval=False)


def _layout(design: Design) -> str:
    """What the layout does to every contrast."""
    note = statistics.contrast_note(design)
    counts = np.bincount(design.items * 2 ** len(design.factors) + designs.cells(design))
    return (
        note if note or len(np.unique(counts)) == 1 else "unbalanced cells: contrasts of cell means, equally weighted"
    )


def _notes(design: Design, target: str, *more: str) -> str:
    """What a reader must know about a number of this target."""
    return _joined(designs.closed_under_xor(design, target), *more)


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
