"""Every probe of one set of activations: all targets, folds, strengths and layers, with the intervals beside them.

For each fold the strength of the L2 penalty is chosen on inner folds by held-out log-loss, for each target by itself,
and for trained and randomised weights alike. Each text is scored in the fold that holds it out; a number is a mean
over texts, its interval comes from a bootstrap over items × carriers (`statistics`): a probe that has looked up names
is right on new cities and wrong on new names, and only resampling the names shows it.

Scores, per target (level = the value without any information):

    accuracy (.5), balanced_accuracy (.5), auroc (.5)   a logit of |z| < 1e-5 is a tie and counts one half
    bits (0)          1 − held-out log-loss in bits: what the probe tells of the label; it has no ceiling at perfect
                      accuracy and falls below 0 where the probe is confidently wrong
    cell_01, ... (.5) accuracy on the texts of one cell of the two factors of a pair (design order, 1 = True)
    worst_cell (.5)   the lowest of these: its lower end is above .5 only for what goes beyond an OR
    margin (0)        mean signed distance y(w·x + b)/‖w‖ from the boundary, in units of the activations
    inner_bits        bits on the inner folds: what layers are chosen by, never reported as a result
    interaction (0)   ‖contrast‖² of the target by its U-statistic, no probe at all; p_items and p_carriers are its
                      sign-flip p-values (the contrast of a pair is δ = μ11 − μ10 − μ01 + μ00)

Pitfall: the published protocol (Marks 2024) splits rows at random, so an item stands on both sides; it tunes nothing
and is repeated over several splits. It is here to reproduce published numbers beside corrected ones.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from counterprobe import designs, probes, progress, splits, statistics, tables
from counterprobe.activations import Store
from counterprobe.designs import Design
from counterprobe.probes import LinearProbe
from counterprobe.revisions import step_of
from counterprobe.splits import Fold, NotTestable
from counterprobe.statistics import Interval

REFERENCE = "logistic"
PUBLISHED = "published"
PUBLISHED_SPLITS = 20

# Relative error of coefficients that are only there to choose a penalty: bits move by 4e-4 and no choice with them.
INNER_TOLERANCE = 1e-3

# What is done to activations before a probe sees them, fitted on the training part: (train, test, rows of either).
Prepare = Callable[[Tensor, Tensor, np.ndarray, np.ndarray], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class HeldOut:
    """What probes say of the texts that were held out from them, one column a label.

    correct (0, ½, 1), bits, margin and decision are [n, K], NaN where a text was never held out and means where it was
    held out several times; fold [n] is the fold that held it out, −1 where none did. inner_bits, penalties [F, K];
    converged [F, K] is False where the solver gave up on a fold's probe.
    """

    correct: Float[np.ndarray, "n K"]
    bits: Float[np.ndarray, "n K"]
    margin: Float[np.ndarray, "n K"]
    decision: Float[np.ndarray, "n K"]
    fold: Int[np.ndarray, " n"]
    inner_bits: Float[np.ndarray, "F K"]
    penalties: Float[np.ndarray, "F K"]
    converged: Bool[np.ndarray, "F K"]


@dataclass(frozen=True)
class Grid:
    """The rows of the table, and the directions of the reference probe fitted on all texts, by site."""

    scores: pd.DataFrame
    directions: dict[str, Tensor]


@dataclass(frozen=True)
class Units:
    """Targets (`columns`) that are resampled together.

    weights are the bootstrap's, one column for the texts that are always drawn together, and of_text says which is each
    text's (`statistics.shared_weights`); items and carriers are the units themselves, None where only items are drawn.
    """

    columns: Int[np.ndarray, " k"]
    weights: Float[np.ndarray, "R u"]
    of_text: Int[np.ndarray, " n"]
    items: Int[np.ndarray, " n"]
    carriers: Int[np.ndarray, "n c"] | None

    def fewest(self, tested: Bool[np.ndarray, " n"]) -> int:
        """Units of the way with the fewest, among the tested texts."""
        return statistics.fewest_units(self.items[tested], None if self.carriers is None else self.carriers[tested])


@dataclass(frozen=True)
class Resampling:
    """The units of every target."""

    groups: tuple[Units, ...]
    confidence: float


def train(store: Store, design: Design, spec: Mapping[str, Any], cell: Mapping[str, str], *, device: str) -> Grid:
    """Probe every site (position, BOS, layer) of every unit of a store, for every target and protocol.

    spec: `probes`, `statistics`, `activations.primary_bos` and `design.protocols` (`beside` says where those after the
    first are read). `cell` names model, revision, weights and design and goes into
    every row. A protocol with nothing to hold out gives no rows, and says so in the log.
    """
    settings = spec["probes"]
    targets = designs.targets(design)
    labels = np.stack(list(targets.values()), axis=1)
    resampling = resample(design, list(targets), spec["statistics"], settings["seed"])
    protocols = dict(testable(design, spec["design"]["protocols"], settings))
    rows: list[dict[str, Any]] = []
    directions = {}
    # The reference probe's results of every layer of a site, from which each fold chooses its own layer.
    by_layer: dict[tuple[Any, ...], list[HeldOut]] = {}
    for (embeddings, seed), (position, bos, layer) in progress.bar(list(sites(store)), label="probes"):
        features = torch.tensor(np.asarray(store.matrix(position, bos, layer, embeddings, seed)), dtype=torch.float32)
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
        rows += contrast_rows(features.numpy(), design, spec["statistics"], site)
        features = features.to(device)
        for protocol, folds in protocols.items():
            # Items alone held out is there beside the reference probe's own protocol, not for every family of probes.
            first = protocol == next(iter(protocols)) and protocol != PUBLISHED
            if not first and not beside(cell["weights"], bos, protocols, spec["activations"]["primary_bos"]):
                continue
            kinds = settings["kinds"] if first else [REFERENCE]
            for kind in kinds:
                held_out = hold_out(features, labels, design, protocol, folds, settings, kind)
                here = {**site, "protocol": protocol, "probe": kind}
                rows += score_rows(held_out, design, labels, list(targets), resampling, here)
                if kind == REFERENCE and first:
                    name = f"{embeddings}.seed{seed}.{position}.{'bos' if bos else 'nobos'}.layer_{layer:02d}"
                    directions[name] = refit(features, labels, held_out)
                if kind == REFERENCE and protocol != PUBLISHED:
                    by_layer.setdefault((embeddings, seed, position, bos, protocol), []).append(held_out)
                    if layer == store.layers[-1]:
                        layers = by_layer.pop((embeddings, seed, position, bos, protocol))
                        chosen = {**here, "layer": -1, "note": "each fold chose its layer on its inner folds"}
                        rows += score_rows(choose_layers(layers), design, labels, list(targets), resampling, chosen)
    return Grid(tables.frame(rows), directions)


def beside(weights: str, bos: bool, protocols: Mapping[str, Any], primary_bos: bool) -> bool:
    """Whether protocols after the first are read here: trained weights with the primary choice of BOS, and rungs where
    splits are what is compared."""
    return bos == primary_bos and (weights == "trained" or PUBLISHED in protocols)


def choose_layers(layers: Sequence[HeldOut]) -> HeldOut:
    """For each fold and column what the layer says that had most bits on that fold's own inner folds.

    The texts that a fold is scored on have no part in the choice: the best of several layers, chosen by the scores
    themselves, would be above one half for noise.
    """
    best = np.argmax([layer.inner_bits for layer in layers], axis=0)
    fold = layers[0].fold
    # A text that no fold held out is NaN at every layer.
    of_text = best[np.maximum(fold, 0)]

    def pick(name: str) -> Float[np.ndarray, "n K"]:
        return np.take_along_axis(np.stack([getattr(layer, name) for layer in layers]), of_text[None], axis=0)[0]

    def pick_fold(name: str) -> np.ndarray:
        return np.take_along_axis(np.stack([getattr(layer, name) for layer in layers]), best[None], axis=0)[0]

    return HeldOut(
        correct=pick("correct"),
        bits=pick("bits"),
        margin=pick("margin"),
        decision=pick("decision"),
        fold=fold,
        inner_bits=pick_fold("inner_bits"),
        penalties=pick_fold("penalties"),
        converged=pick_fold("converged"),
    )


def sites(store: Store) -> Iterator[tuple[tuple[str, int], tuple[str, bool, int]]]:
    """Every (embeddings, seed), (position, BOS, layer) of a store, in a fixed order."""
    for unit in store.units:
        for position in store.positions:
            for bos in store.bos:
                for layer in store.layers:
                    yield unit, (position, bos, layer)


def testable(
    design: Design, protocols: Sequence[str], settings: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[Fold, ...]]]:
    """The protocols that have something to hold out, with their folds; the published one makes its own."""
    for protocol in protocols:
        if protocol == PUBLISHED:
            yield protocol, ()
            continue
        try:
            yield (
                protocol,
                splits.folds(
                    design,
                    protocol,
                    settings["inner_folds"],
                    n_folds=settings["outer_folds"],
                    seed=settings["seed"],
                ),
            )
        except NotTestable as reason:
            progress.logger("probes").warning("%s: protocol %s is left out: %s", design.name, protocol, reason)


def hold_out(
    features: Float[Tensor, "n d"],
    labels: Bool[np.ndarray, "n K"],
    design: Design,
    protocol: str,
    folds: Sequence[Fold],
    settings: Mapping[str, Any],
    kind: str,
) -> HeldOut:
    """One probe a column under any protocol; `folds` as `testable` gave them."""
    if protocol == PUBLISHED:
        return published(features, labels, design, settings)
    return cross_validate(features, labels, folds, settings["penalties"], kind)


def cross_validate(
    features: Float[Tensor, "n d"],
    labels: Bool[np.ndarray, "n K"],
    folds: Sequence[Fold],
    penalties: Sequence[float],
    kind: str,
    prepare: Prepare | None = None,
) -> HeldOut:
    """Hold out every fold in turn; for the logistic probe choose the penalty of every column on its inner folds.

    `prepare` changes the activations of either part, from what the training part shows (erasure, surrogates).
    """
    y = torch.as_tensor(labels, device=features.device)
    collected = _Collector(*labels.shape)
    chosen, inner = [], []
    for index, fold in enumerate(folds):
        if kind == REFERENCE and fold.inner:
            bits = inner_bits(features, y, fold, penalties, prepare)
            best = bits.argmax(axis=0)
            chosen.append(np.asarray(penalties)[best])
            inner.append(bits.max(axis=0))
        else:
            chosen.append(np.full(labels.shape[1], penalties[len(penalties) // 2]))
            inner.append(np.full(labels.shape[1], np.nan))
        train_part, test_part = _parts(features, fold.train, fold.test, prepare)
        fit = fit_probe(train_part, y[fold.train], kind, chosen[-1])
        collected.add(index, fold.test, fit, test_part, y[fold.test])
    return collected.held_out(np.stack(inner), np.stack(chosen))


def published(
    features: Float[Tensor, "n d"], labels: Bool[np.ndarray, "n K"], design: Design, settings: Mapping[str, Any]
) -> HeldOut:
    """Row-random splits, one for each target and repetition, at the middle penalty: one batched problem.

    Rows that a split holds out have weight 0 in its column. Activations are standardised by all rows, which the labels
    have no part in (the published probes did not standardise at all).
    """
    n, n_labels = labels.shape
    train_rows = np.zeros((n, n_labels, PUBLISHED_SPLITS), dtype=bool)
    for column in range(n_labels):
        for repeat in range(PUBLISHED_SPLITS):
            train_rows[splits.published_split(design, column, settings["seed"] + repeat).train, column, repeat] = True
    y = torch.as_tensor(np.repeat(labels, PUBLISHED_SPLITS, axis=1), device=features.device)
    mask = torch.as_tensor(train_rows.reshape(n, -1), device=features.device)
    penalty = settings["penalties"][len(settings["penalties"]) // 2]
    fit = probes.logistic(features, y, penalty, weights=mask)
    scored = probes.score_texts(fit, features, y)

    def mean(values: Tensor) -> Float[np.ndarray, "n K"]:
        held_out = np.where(train_rows, np.nan, values.double().cpu().numpy().reshape(train_rows.shape))
        with warnings.catch_warnings():
            # A text that no split held out is NaN, as it should be.
            warnings.simplefilter("ignore", RuntimeWarning)
            return np.nanmean(held_out, axis=2)

    return HeldOut(
        correct=mean(scored.correct),
        bits=mean(scored.bits),
        margin=mean(scored.margin),
        decision=mean(scored.decision),
        # Every text is held out by several splits: there is no fold within which to rank decisions.
        fold=np.zeros(n, dtype=np.int64),
        inner_bits=np.full((1, n_labels), np.nan),
        penalties=np.full((1, n_labels), penalty),
        converged=fit.converged.cpu().numpy().reshape(n_labels, PUBLISHED_SPLITS).all(axis=1)[None],
    )


def inner_bits(
    features: Float[Tensor, "n d"],
    labels: Bool[Tensor, "n K"],
    fold: Fold,
    penalties: Sequence[float],
    prepare: Prepare | None = None,
) -> Float[np.ndarray, "P K"]:
    """Mean held-out bits over the inner folds, for every penalty and column: all of them one batched problem a fold."""
    n_labels = labels.shape[1]
    grid = np.repeat(penalties, n_labels)
    total = np.zeros(len(grid))
    for train_rows, valid_rows in fold.inner:
        train_part, valid_part = _parts(features, train_rows, valid_rows, prepare)
        fit = probes.logistic(
            train_part, labels[train_rows].repeat(1, len(penalties)), torch.as_tensor(grid), tol=INNER_TOLERANCE
        )
        scored = probes.score_texts(fit, valid_part, labels[valid_rows].repeat(1, len(penalties)))
        total += scored.bits.mean(dim=0).cpu().numpy()
    return (total / len(fold.inner)).reshape(len(penalties), n_labels)


def fit_probe(
    features: Float[Tensor, "n d"], labels: Bool[Tensor, "n K"], kind: str, penalties: Float[np.ndarray, " K"]
) -> LinearProbe:
    """One probe a column, as directions and intercepts in the space of the raw activations."""
    if kind == REFERENCE:
        return probes.logistic(features, labels, torch.as_tensor(penalties))
    return {"mass_mean": probes.mass_mean, "lda": probes.lda}[kind](features, labels)


def refit(features: Float[Tensor, "n d"], labels: Bool[np.ndarray, "n K"], held_out: HeldOut) -> Float[Tensor, "d K"]:
    """The reference probe of every target on all texts, at the penalty the folds chose most cautiously (their maximum)."""
    y = torch.as_tensor(labels, device=features.device)
    return fit_probe(features, y, REFERENCE, held_out.penalties.max(axis=0)).directions


def resample(design: Design, targets: Sequence[str], settings: Mapping[str, Any], seed: int) -> Resampling:
    """Bootstrap weights, drawn once for all targets that rest on the same units."""
    shared: dict[tuple[str, ...], list[int]] = {}
    for column, target in enumerate(targets):
        units = tuple(factor for factor in target.split("^") if factor in design.carriers)
        shared.setdefault(units, []).append(column)
    groups = []
    for index, columns in enumerate(shared.values()):
        items, carriers = statistics.inference_units(design, targets[columns[0]])
        weights = statistics.two_way_weights(
            items, carriers, settings["resamples"], np.random.default_rng([seed, index]), design.strata
        )
        groups.append(Units(np.array(columns), *statistics.shared_weights(weights), items, carriers))
    return Resampling(tuple(groups), settings["confidence"])


def score_rows(
    held_out: HeldOut,
    design: Design,
    labels: Bool[np.ndarray, "n K"],
    targets: Sequence[str],
    resampling: Resampling,
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """One row per target and score. The reference probe has all scores, others and published splits accuracy only.

    Where a feature is rare all have balanced accuracy as well: accuracy hides what happens to its few texts.
    """
    full = site["probe"] == REFERENCE and site["protocol"] != PUBLISHED
    for group in resampling.groups:
        columns, weights = group.columns, group.weights
        tested = ~np.isnan(held_out.correct[:, columns]).all(axis=1)
        units = group.fewest(tested)
        common = {"confidence": resampling.confidence, "units": units, "of_text": group.of_text[tested]}
        correct, truth = held_out.correct[tested][:, columns], labels[tested][:, columns]
        share = labels[:, columns].mean(axis=0)
        # What saying the same of every text reaches: one half where classes are balanced.
        majority = np.maximum(share, 1 - share)
        named = {"accuracy": (majority, statistics.bootstrap(correct, weights, **common))}
        if full or design.priors:
            named["balanced_accuracy"] = (0.5, statistics.balanced_bootstrap(correct, truth, weights, **common))
        if full:
            inner = held_out.inner_bits[:, columns].mean(axis=0)
            decisions, fold = held_out.decision[tested][:, columns], held_out.fold[tested]
            named |= {
                "auroc": (0.5, statistics.auroc_bootstrap(decisions, truth, weights, **common, folds=fold)),
                "bits": (0.0, statistics.bootstrap(held_out.bits[tested][:, columns], weights, **common)),
                "margin": (0.0, statistics.bootstrap(held_out.margin[tested][:, columns], weights, **common)),
                "inner_bits": (
                    0.0,
                    Interval(inner, np.full_like(inner, np.nan), np.full_like(inner, np.nan)),
                ),
            }
        for place, column in enumerate(columns):
            row = {**site, "target": targets[column], "n_texts": int(tested.sum()), "n_groups": units}
            given_up = int((~held_out.converged[:, column]).sum())
            if given_up:
                row["note"] = "; ".join(filter(None, [row["note"], f"not converged in {given_up} folds"]))
            for score, (level, interval) in named.items():
                at = level[place] if isinstance(level, np.ndarray) else level
                yield {**row, "score": score, "level": at, **_ends(interval, place)}
        pairs = [place for place, column in enumerate(columns) if targets[column].count("^") == 1]
        if full and pairs:
            row = {**site, "n_texts": int(tested.sum()), "n_groups": units}
            names = [targets[columns[place]] for place in pairs]
            yield from cell_rows(correct[:, pairs], design, names, tested, weights, common, row)


def cell_rows(
    correct: Float[np.ndarray, "n k"],
    design: Design,
    pairs: Sequence[str],
    tested: Bool[np.ndarray, " texts"],
    weights: Float[np.ndarray, "R u"],
    common: Mapping[str, Any],
    row: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Accuracy on each of the four cells of a pair's two factors, and on the worst of them."""
    cells = np.stack(
        [
            sum(design.factors[factor][tested].astype(np.int64) << i for i, factor in enumerate(pair.split("^")))
            for pair in pairs
        ],
        axis=1,
    )
    each, worst = statistics.cell_bootstrap(correct, cells, weights, **common)
    for place, pair in enumerate(pairs):
        here = {**row, "target": pair, "level": 0.5}
        for cell in range(4):
            ends = Interval(each.estimate[place], each.lower[place], each.upper[place])
            yield {**here, "score": f"cell_{cell & 1}{cell >> 1}", **_ends(ends, cell)}
        yield {**here, "score": "worst_cell", **_ends(worst, place)}


def contrast_rows(
    features: Float[np.ndarray, "n d"], design: Design, settings: Mapping[str, Any], site: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Exact inference beside the probes: how large is the target's own effect, and could it be chance."""
    tests = statistics.contrast_tests(
        features, design, settings["sign_flips"], np.random.default_rng(0), settings["confidence"]
    )
    common = {**site, "probe": "contrast", "note": tests.note, "n_texts": len(design.texts)}
    for index, target in enumerate(tests.targets):
        row = {**common, "target": target, "n_groups": len(np.unique(design.couples))}
        yield {**row, "protocol": "items", "score": "interaction", "level": 0.0, **_ends(tests.norm, index)}
        yield {**row, "protocol": "items", "score": "p_items", "estimate": tests.p_items[index]}
        carriers = [factor for factor in target.split("^") if factor in tests.p_carriers]
        if carriers:
            # A target that contains several factors with carriers is only as safe as the worst of them.
            worst = max(carriers, key=lambda factor: tests.p_carriers[factor][index])
            row = {**row, "protocol": "carriers", "n_groups": len(np.unique(design.carriers[worst]))}
            yield {**row, "score": "p_carriers", "estimate": tests.p_carriers[worst][index]}
            if worst in tests.norm_carriers:
                yield {
                    **row,
                    "score": "interaction",
                    "level": 0.0,
                    **_ends(tests.norm_carriers[worst], index),
                }


def _parts(
    features: Float[Tensor, "n d"], train_rows: np.ndarray, test_rows: np.ndarray, prepare: Prepare | None
) -> tuple[Tensor, Tensor]:
    parts = features[train_rows], features[test_rows]
    return parts if prepare is None else prepare(*parts, train_rows, test_rows)


def _ends(interval: Interval, place: int = 0) -> dict[str, float]:
    return {
        "estimate": interval.estimate[place],
        "lower": interval.lower[place],
        "upper": interval.upper[place],
    }


class _Collector:
    """Sums over the folds that held a text out."""

    def __init__(self, n: int, n_labels: int) -> None:
        self.sums = {name: np.zeros((n, n_labels)) for name in ("correct", "bits", "margin", "decision")}
        self.count = np.zeros((n, 1))
        self.fold = np.full(n, -1)
        self.converged: list[np.ndarray] = []

    def add(
        self,
        index: int,
        rows: Int[np.ndarray, " m"],
        fit: LinearProbe,
        features: Float[Tensor, "m d"],
        labels: Bool[Tensor, "m K"],
    ) -> None:
        scored = probes.score_texts(fit, features, labels)
        for name, total in self.sums.items():
            total[rows] += getattr(scored, name).double().cpu().numpy()
        self.count[rows] += 1
        self.fold[rows] = index
        self.converged.append(fit.converged.cpu().numpy())

    def held_out(self, inner: Float[np.ndarray, "F K"], penalties: Float[np.ndarray, "F K"]) -> HeldOut:
        with np.errstate(invalid="ignore"):
            means = {name: total / np.where(self.count > 0, self.count, np.nan) for name, total in self.sums.items()}
        return HeldOut(
            **means, fold=self.fold, inner_bits=inner, penalties=penalties, converged=np.stack(self.converged)
        )
