"""What the same probes read where the feature cannot be: random labels, and activations from which it was taken.

All with the primary choice of BOS, on the first protocol of the design that holds something out. Each row compares like
with like: same folds, same number of texts, and for dichotomies one penalty, the middle of the grid, for both sides (at
the target's own best penalty it would be favoured).

    dichotomy           random balanced labellings of the 2^m cells, orthogonal to every basic factor, to the parities
                        the model needs and to the target. `accuracy` is their mean; `selectivity` is the target's
                        accuracy minus that mean, paired text by text; `spread` is their standard deviation and
                        `rank` the number of parities they span (for `verdicts`). Any network that mixes its inputs
                        carries some of every dichotomy; a target that is no better than those is not singled out.
    shuffled            labels permuted within items: must be one half, a check of the code and of the split
    control_task        a random label for each carrier on a split that shares carriers (Hewitt and Liang 2019,
                        arXiv 1909.03368): how much a probe can memorise. The real label on that split is in the rows
                        with protocol `items` and control `none`.
    additive_surrogate  activations less the target's own Walsh effect, in the training and the test part of every fold
                        alike: the exact null of the target, with everything else left as it is
    erased              activations after LEACE (Belrose et al. 2023, arXiv 2306.03819) of the target's own factors,
                        fitted on the training part. `delta_removed` is the share of ‖δ‖² that goes with them. A low
                        accuracy does not show that there is no XOR: gain modulation lies in the erased directions.
    token_embeddings    the mean input embedding of the tokens read: data without a model. `bits_beyond_tokens` is
                        bits(tokens and activations) − bits(tokens), conditional V-information (Hewitt et al. 2021,
                        arXiv 2109.09234).

Where the design has a rare feature these rows are balanced accuracies, and random labels keep the prior.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from counterprobe import (
    designs,
    label_controls,
    probe_grid,
    probes,
    progress,
    splits,
    statistics,
    tables,
)
from counterprobe.activations import Store
from counterprobe.designs import Design
from counterprobe.probe_grid import REFERENCE, HeldOut, Resampling
from counterprobe.progress import UserError
from counterprobe.revisions import step_of
from counterprobe.splits import Fold
from counterprobe.verdicts import Dichotomies


def measure(
    store: Store, design: Design, spec: Mapping[str, Any], cell: Mapping[str, str], *, device: str
) -> pd.DataFrame:
    """Every control of this module at every layer of every unit of a store. spec: `probes`, `statistics`,
    `activations.positions`, `activations.primary_bos` and `design.protocols`. `cell` names model, revision, weights and
    design.
    """
    settings = spec["probes"]
    bos = spec["activations"]["primary_bos"]
    protocols = {
        protocol: folds
        for protocol, folds in probe_grid.testable(design, spec["design"]["protocols"], settings)
        if protocol != probe_grid.PUBLISHED
    }
    if not protocols:
        progress.logger("controls").warning("%s: no protocol holds anything out; there are no controls", design.name)
        return tables.frame([])
    protocol, folds = next(iter(protocols.items()))
    targets = designs.targets(design)
    labels = np.stack(list(targets.values()), axis=1)
    resampling = probe_grid.resample(design, list(targets), spec["statistics"], settings["seed"])
    rows: list[dict[str, Any]] = []
    places = [(unit, position) for unit in store.units for position in spec["activations"]["positions"]]
    for (embeddings, seed), position in progress.bar(places, label="controls"):
        site = {
            **tables.NOT_APPLICABLE,
            **cell,
            "step": step_of(cell["revision"]),
            "embeddings": embeddings,
            "seed": seed,
            "position": position,
            "bos": bos,
            "protocol": protocol,
            "probe": REFERENCE,
        }
        tokens = _tensor(store.token_embeddings(position, bos, embeddings, seed), device)
        of_tokens = probe_grid.cross_validate(tokens, labels, folds, settings["penalties"], REFERENCE)
        at_input = {**site, "layer": 0, "representation": "token_embeddings"}
        rows += probe_grid.score_rows(of_tokens, design, labels, list(targets), resampling, at_input)
        for layer in store.layers:
            features = _tensor(store.matrix(position, bos, layer, embeddings, seed), device)
            here = {**site, "layer": layer}
            real = probe_grid.cross_validate(features, labels, folds, settings["penalties"], REFERENCE)
            rows += _dichotomies(features, design, labels, folds, settings, resampling, here)
            rows += _shuffled(features, design, labels, real, folds, settings, resampling, here)
            rows += _control_tasks(features, design, settings, here)
            rows += _without_the_feature(features, design, folds, settings, resampling, here)
            both = probe_grid.cross_validate(
                torch.cat([tokens, features], dim=1), labels, folds, settings["penalties"], REFERENCE
            )
            rows += _paired(
                both.bits - of_tokens.bits,
                resampling,
                list(targets),
                {**here, "score": "bits_beyond_tokens", "level": 0.0},
            )
    return tables.frame(rows)


def dichotomy_pool(
    design: Design, targets: Sequence[str], settings: Mapping[str, Any]
) -> tuple[Bool[np.ndarray, "n P"], dict[str, np.ndarray]]:
    """Labels of every dichotomy that some target is held against, and which columns belong to which target.

    A labelling and its negation are one dichotomy: a probe reads both equally well. Targets that have too few (a
    design of two factors has none) have no entry, and the log says so.
    """
    names = list(design.factors)
    cells = designs.cells(design)
    pool: dict[bytes, np.ndarray] = {}
    members = {}
    for target in targets:
        forbidden = label_controls.forbidden_parities(design, target)
        rng = np.random.default_rng([settings["seed"], 1])
        try:
            drawn = label_controls.dichotomies(names, forbidden, settings["dichotomies"], rng)
        except UserError as reason:
            progress.logger("controls").warning("%s: no dichotomies for %s: %s", design.name, target, reason)
            continue
        keys = sorted({row.tobytes() for row in drawn})
        pool |= {row.tobytes(): row for row in drawn}
        members[target] = keys
    order = {key: column for column, key in enumerate(sorted(pool))}
    labels = np.stack([pool[key][cells] for key in sorted(pool)], axis=1) if pool else np.zeros((len(cells), 0), bool)
    return labels, {target: np.array([order[key] for key in keys]) for target, keys in members.items()}


def _dichotomies(
    features: Tensor,
    design: Design,
    labels: Bool[np.ndarray, "n K"],
    folds: Sequence[Fold],
    settings: Mapping[str, Any],
    resampling: Resampling,
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Targets and dichotomies in one batch, at one penalty."""
    targets = list(designs.targets(design))
    if design.priors:
        # A balanced labelling is no null for a rare feature.
        progress.logger("controls").warning("%s: features with a prior are held against no dichotomies", design.name)
        return
    pool, members = dichotomy_pool(design, targets, settings)
    if not members:
        return
    penalty = settings["penalties"][len(settings["penalties"]) // 2]
    columns = {targets.index(target): chosen for target, chosen in members.items()}
    against = against_dichotomies(features, labels, pool, columns, folds, penalty)
    real, mean = against.correct, against.mean
    shown = [target for target in targets if target in members]
    note = f"{min(len(m) for m in members.values())} or more dichotomies, each up to its sign"
    row = {**site, "control": "dichotomy", "note": note}
    yield from _paired(mean, resampling, targets, {**row, "score": "accuracy", "level": 0.5}, only=shown)
    yield from _paired(real - mean, resampling, targets, {**row, "score": "selectivity", "level": 0.0}, only=shown)
    for column, labellings in against.labellings.items():
        # Whether the target is more than one more labelling depends on how much those differ from one another.
        spread = {**row, "target": targets[column], "level": float("nan"), "n_texts": len(labels)}
        yield {**spread, "score": "spread", "estimate": labellings.spread, "n_groups": labellings.count}
        yield {**spread, "score": "rank", "estimate": float(labellings.rank), "n_groups": labellings.count}


@dataclass(frozen=True)
class AgainstDichotomies:
    """Right answers on targets and, beside each, the mean over its dichotomies [n, T], NaN where it has none."""

    correct: Float[np.ndarray, "n T"]
    mean: Float[np.ndarray, "n T"]
    labellings: dict[int, Dichotomies]


def against_dichotomies(
    features: Float[Tensor, "n d"],
    labels: Bool[np.ndarray, "n T"],
    pool: Bool[np.ndarray, "n P"],
    members: Mapping[int, np.ndarray],
    folds: Sequence[Fold],
    penalty: float,
) -> AgainstDichotomies:
    """Targets and their dichotomies in one batch, at one penalty. `members`: column of a target -> columns of the pool."""
    both = np.concatenate([labels, pool], axis=1)
    outer = [without_inner(fold) for fold in folds]
    correct = probe_grid.cross_validate(features, both, outer, [penalty], REFERENCE).correct
    real, drawn = correct[:, : labels.shape[1]], correct[:, labels.shape[1] :]
    mean = np.full(real.shape, np.nan)
    accuracy, labellings = np.nanmean(correct, axis=0), {}
    for column, chosen in members.items():
        mean[:, column] = drawn[:, chosen].mean(axis=1)
        reached = accuracy[labels.shape[1] + chosen]
        signs = np.where(np.unique(pool[:, chosen], axis=0), 1, -1)
        labellings[column] = Dichotomies(
            target=float(accuracy[column]),
            mean=float(reached.mean()),
            spread=float(reached.std(ddof=1)),
            count=len(chosen),
            rank=int(np.linalg.matrix_rank(signs)),
        )
    return AgainstDichotomies(real, mean, labellings)


def without_inner(fold: Fold) -> Fold:
    """The fold without its inner folds, where nothing is to be chosen on them."""
    return replace(fold, inner=())


def _shuffled(
    features: Tensor,
    design: Design,
    labels: Bool[np.ndarray, "n K"],
    real: HeldOut,
    folds: Sequence[Fold],
    settings: Mapping[str, Any],
    resampling: Resampling,
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Mean accuracy over several permutations, at the penalties the real labels chose."""
    rng = np.random.default_rng([settings["seed"], 2])
    n_labels, repeats = labels.shape[1], settings["shuffles"]
    shuffled = np.concatenate(
        [label_controls.shuffled_within_items(labels, design.items, rng) for _ in range(repeats)], axis=1
    )
    y = torch.as_tensor(shuffled, device=features.device)
    fair = in_balance(shuffled, design)
    mean = np.full(labels.shape, np.nan)
    for index, fold in enumerate(folds):
        fit = probe_grid.fit_probe(
            features[fold.train], y[fold.train], REFERENCE, np.tile(real.penalties[index], repeats)
        )
        correct = probes.score_texts(fit, features[fold.test], y[fold.test]).correct.cpu().numpy()
        mean[fold.test] = (correct * fair[fold.test]).reshape(len(fold.test), repeats, n_labels).mean(axis=1)
    row = {**site, "control": "shuffled", "score": score_name(design), "level": 0.5}
    yield from _paired(mean, resampling, list(designs.targets(design)), row)


def score_name(design: Design) -> str:
    """Accuracy says little of a label that is nearly always False."""
    return "balanced_accuracy" if design.priors else "accuracy"


def in_balance(labels: Bool[np.ndarray, "n K"], design: Design) -> Float[np.ndarray, "n K"]:
    """Weights that turn a mean of right answers into what `score_name` says: 1, or one half for either class."""
    if not design.priors:
        return np.ones(labels.shape)
    share = labels.mean(axis=0)
    return 0.5 / np.where(labels, share, 1 - share)


def _control_tasks(
    features: Tensor, design: Design, settings: Mapping[str, Any], site: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Memorising capacity: a random label for each carrier, read on a split that holds out items only."""
    folds = splits.folds(
        design, "items", settings["inner_folds"], n_folds=settings["outer_folds"], seed=settings["seed"]
    )
    rng = np.random.default_rng([settings["seed"], 3])
    for factor in design.carriers:
        prior = design.priors.get(factor, 0.5)
        drawn = np.stack(
            [label_controls.control_task(design, factor, rng, prior) for _ in range(settings["control_tasks"])],
            axis=1,
        )
        held_out = probe_grid.cross_validate(features, drawn, folds, settings["penalties"], REFERENCE)
        accuracy = np.nanmean(held_out.correct * in_balance(drawn, design), axis=0)
        interval = statistics.t_interval(accuracy)
        yield {
            **site,
            "target": factor,
            "protocol": "items",
            "control": "control_task",
            "score": score_name(design),
            "level": 0.5,
            "estimate": float(interval.estimate),
            "lower": float(interval.lower),
            "upper": float(interval.upper),
            "n_texts": len(design.texts),
            "n_groups": len(accuracy),
            "note": "interval over random labellings",
        }


def _without_the_feature(
    features: Tensor,
    design: Design,
    folds: Sequence[Fold],
    settings: Mapping[str, Any],
    resampling: Resampling,
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """The pre-registered XOR and the needed ones, from the additive surrogate and from what LEACE of the factors leaves."""
    targets = list(designs.targets(design))
    pairs = list(dict.fromkeys([designs.canonical(design, "^".join(design.primary)), *design.needed]))
    for kind, take_away in (("additive_surrogate", _less_the_effect), ("erased", _less_the_factors)):
        correct = np.full((len(design.texts), len(targets)), np.nan)
        for target in pairs:
            label = designs.parity(design, target)[:, None]
            held_out = probe_grid.cross_validate(
                features, label, folds, settings["penalties"], REFERENCE, take_away(design, target)
            )
            correct[:, targets.index(target)] = held_out.correct[:, 0] * in_balance(label, design)[:, 0]
        row = {**site, "representation": kind, "score": score_name(design), "level": 0.5}
        yield from _paired(correct, resampling, targets, row, only=pairs)
    for target in pairs:
        yield {
            **site,
            "target": target,
            "representation": "erased",
            "score": "delta_removed",
            "level": 0.0,
            "estimate": delta_removed(features, design, target),
            "n_texts": len(design.texts),
            "n_groups": len(np.unique(design.couples)),
        }


def _less_the_effect(design: Design, target: str) -> probe_grid.Prepare:
    """Remove the target's Walsh effect from either part, each by its own fit: neither is left with a trace of it.

    Taking the effect of all texts away from both would leave each part with the other's error, of opposite sign, and
    the probe below one half. The effect is the target's coefficient in a regression on all parities, which is its mean
    where the part is balanced and does not mix with other parities where it is not.
    """
    names = list(designs.targets(design))
    column = 1 + names.index(target)
    signs = np.stack([np.where(designs.parity(design, name), 1.0, -1.0) for name in names], axis=1)
    z = torch.as_tensor(np.concatenate([np.ones((len(signs), 1)), signs], axis=1))

    def less(part: Tensor, rows: np.ndarray) -> Tensor:
        here = z[rows].to(part.device)
        effects = torch.linalg.pinv(here) @ part.double()
        return part - (here[:, [column]] * effects[column]).float()

    def prepare(train: Tensor, test: Tensor, train_rows: np.ndarray, test_rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return less(train, train_rows), less(test, test_rows)

    return prepare


def _less_the_factors(design: Design, target: str) -> probe_grid.Prepare:
    """Erase the target's own factors by LEACE, fitted on the training part only."""
    from concept_erasure import LeaceEraser

    concepts = factor_values(design, target)

    def prepare(train: Tensor, test: Tensor, train_rows: np.ndarray, test_rows: np.ndarray) -> tuple[Tensor, Tensor]:
        # float64: the eraser inverts a covariance, and the null it promises is exact only as far as that is.
        eraser = LeaceEraser.fit(train.double(), concepts[train_rows].to(train.device))
        return eraser(train.double()).float(), eraser(test.double()).float()

    return prepare


def factor_values(design: Design, target: str) -> Float[Tensor, "n k"]:
    """The factors of a target as the concepts that LEACE erases, float64."""
    return torch.as_tensor(np.stack([design.factors[f] for f in target.split("^")], axis=1), dtype=torch.float64)


def delta_removed(features: Float[Tensor, "n d"], design: Design, target: str) -> float:
    """Share of ‖δ‖² of a pair that LEACE of its two factors removes, 1 − ‖(I − P)δ‖² / ‖δ‖², by the U-statistic.

    NaN where the interval of ‖δ‖² before erasure includes 0: a share of nothing is noise.
    """
    from concept_erasure import LeaceEraser

    x = features.double()
    erased = LeaceEraser.fit(x, factor_values(design, target).to(x.device))(x)
    before, after = (
        statistics.interaction_norm(statistics.walsh_contrasts(part.cpu().numpy(), design, [target]))
        for part in (x, erased)
    )
    return float(1 - after.estimate[0] / before.estimate[0]) if before.lower[0] > 0 else float("nan")


def _paired(
    values: Float[np.ndarray, "n K"],
    resampling: Resampling,
    targets: Sequence[str],
    row: Mapping[str, Any],
    only: Sequence[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """One row a target: the mean of per-text values with the interval of the target's own units."""
    for group in resampling.groups:
        wanted = [column for column in group.columns if only is None or targets[column] in only]
        if not wanted:
            continue
        tested = ~np.isnan(values[:, wanted]).all(axis=1)
        units = group.fewest(tested)
        interval = statistics.bootstrap(
            values[tested][:, wanted], group.weights, resampling.confidence, units, group.of_text[tested]
        )
        for place, column in enumerate(wanted):
            yield {
                **row,
                "target": targets[column],
                "estimate": interval.estimate[place],
                "lower": interval.lower[place],
                "upper": interval.upper[place],
                "n_texts": int(tested.sum()),
                "n_groups": units,
            }


def _tensor(matrix: np.ndarray, device: str) -> Tensor:
    return torch.tensor(np.asarray(matrix), dtype=torch.float32).to(device)
