"""Probe families of growing capacity on the same folds: does what they read better stand out better (C33)?

In the order of what they can express:

    mass_mean    the difference of the class means
    lda          Fisher's discriminant
    logistic     the reference probe
    quadratic    logistic regression on the activations and on all squares and products of their first k principal
                 components (standardised; components fitted on the training part): a superset of the last
    mlp_h        one hidden layer of h ReLU units, h = 4, 16, 64, 256 by default

A larger family reads the target better, and any other labelling of the texts too. So beside the targets stand random
balanced labellings of the cells, orthogonal to the factors, the needed parities and every target here (one pool for all
targets, on the same folds): selectivity = accuracy − their mean, paired text by text; and the same targets under every rung
of the ladder of randomised weights, whose accuracies are rows of their own.

*Perceptrons.* All labels and widths of a fold are one stack of parameters: the first layers, side by side, are one matrix
product. Logistic loss, Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101) on minibatches whose
order is the same for all; every label starts from the same weights, so a probe does not depend on which others stand
beside it. Each probe stops at the epoch at which its log-loss on an inner fold, trained on the rest of the training part,
was least; then all of the training part is used for as many epochs. That one number takes the place of the penalty: it
goes from a nearly linear probe to one that has learned the texts by heart, and costs one more run, not one a penalty.

*C33*, for each target over the bootstrap of items and carriers: the number, from 0, of the family at which accuracy peaks
(`peak_accuracy`) and at which selectivity does (`peak_selectivity`), and their difference (`peak_difference`): selectivity
peaks earlier where its lower end is above 0. Ties go to the smaller family.

Pitfall: families differ in how they are regularised as well as in what they can express; a smaller family that wins here
may owe it to its penalty.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from counterprobe import designs, label_controls, probe_controls, probe_grid, probes, progress, statistics, tables
from counterprobe.activations import Store
from counterprobe.designs import Design
from counterprobe.probe_grid import PUBLISHED, REFERENCE, Resampling
from counterprobe.progress import UserError
from counterprobe.revisions import step_of
from counterprobe.splits import Fold

QUADRATIC = "quadratic"
CLOSED_FORMS = ("mass_mean", "lda")
TRAINED = "trained"


def families(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Names in the order of their capacity. settings: `capacity`."""
    return (*CLOSED_FORMS, REFERENCE, QUADRATIC, *(f"mlp_{width}" for width in sorted(settings["widths"])))


def targets(design: Design) -> tuple[str, ...]:
    """The pre-registered pair, the needed XORs, and the factors of either, in the order of all targets."""
    pairs = {designs.canonical(design, "^".join(design.primary)), *design.needed}
    wanted = pairs | {factor for pair in pairs for factor in pair.split("^")}
    return tuple(name for name in designs.targets(design) if name in wanted)


def measure(
    store: Store, design: Design, spec: Mapping[str, Any], cell: Mapping[str, str], *, device: str
) -> pd.DataFrame:
    """Every family at the primary position of one layer; dichotomies and the peaks under trained weights only.

    spec: `capacity`, `probes`, `statistics`, `activations.primary_*`, `design.protocols`. Rungs are read at seed 0 with
    embeddings kept. UserError for a layer that the store does not have.
    """
    settings, capacity = spec["probes"], spec["capacity"]
    position, bos = spec["activations"]["primary_position"], spec["activations"]["primary_bos"]
    layer = store.layers[-1] if capacity["layer"] == "last" else capacity["layer"]
    if layer not in store.layers:
        raise UserError(
            f"config, capacity.layer: there is no layer {layer}; layers are 0 to {store.layers[-1]}, or last"
        )
    protocols = probe_grid.testable(design, spec["design"]["protocols"], settings)
    chosen = next(((protocol, folds) for protocol, folds in protocols if protocol != PUBLISHED), None)
    if chosen is None:
        progress.logger("capacity").warning("%s: no protocol holds anything out; nothing is probed", design.name)
        return tables.frame([])
    protocol, folds = chosen
    embeddings, seed = "kept", 0
    names = targets(design)
    labels = np.stack([designs.parity(design, name) for name in names], axis=1)
    drawn = dichotomies(design, capacity["dichotomies"], settings["seed"]) if cell["weights"] == TRAINED else None
    both = labels if drawn is None else np.concatenate([labels, drawn], axis=1)
    features = torch.tensor(np.asarray(store.matrix(position, bos, layer, embeddings, seed)), dtype=torch.float32)
    held_out = every_family(features.to(device), both, folds, settings, capacity)
    resampling = probe_grid.resample(design, names, spec["statistics"], settings["seed"])
    site = {
        **tables.NOT_APPLICABLE,
        **cell,
        "step": step_of(cell["revision"]),
        "embeddings": embeddings,
        "seed": seed,
        "position": position,
        "bos": bos,
        "layer": layer,
        "protocol": protocol,
    }
    fair = probe_controls.in_balance(labels, design)
    accuracy = {family: correct[:, : len(names)] * fair for family, correct in held_out.items()}
    rows: list[dict[str, Any]] = []
    for family, values in accuracy.items():
        row = {**site, "probe": family, "score": probe_controls.score_name(design), "level": 0.5}
        rows += mean_rows(values, resampling, names, row)
    if drawn is not None:
        against = {family: correct[:, len(names) :].mean(axis=1, keepdims=True) for family, correct in held_out.items()}
        note = f"{drawn.shape[1]} dichotomies, each up to its sign"
        for family, mean in against.items():
            row = {**site, "probe": family, "control": "dichotomy", "note": note}
            level = {**row, "score": "accuracy", "level": 0.5}
            rows += mean_rows(np.repeat(mean, len(names), axis=1), resampling, names, level)
            rows += mean_rows(accuracy[family] - mean, resampling, names, {**row, "score": "selectivity", "level": 0.0})
        stacked = np.stack(list(accuracy.values()))
        rows += peak_rows(stacked, stacked - np.stack(list(against.values())), list(accuracy), resampling, names, site)
    return tables.frame(rows)


def dichotomies(design: Design, count: int, seed: int) -> Bool[np.ndarray, "n k"] | None:
    """One pool for all targets; None, with a word in the log, where the design has too few or a feature is rare."""
    log = progress.logger("capacity")
    if design.priors:
        log.warning("%s: features with a prior are held against no dichotomies", design.name)
        return None
    forbidden = {parity for name in targets(design) for parity in label_controls.forbidden_parities(design, name)}
    try:
        rng = np.random.default_rng([seed, 1])
        found = label_controls.dichotomies(list(design.factors), sorted(forbidden), count, rng)
    except UserError as reason:
        log.warning("%s: no dichotomies: %s", design.name, reason)
        return None
    return found.T[designs.cells(design)]


def every_family(
    features: Float[Tensor, "n d"],
    labels: Bool[np.ndarray, "n K"],
    folds: Sequence[Fold],
    settings: Mapping[str, Any],
    capacity: Mapping[str, Any],
) -> dict[str, Float[np.ndarray, "n K"]]:
    """Right answers (0, ½, 1; NaN where never held out) of every family, in the order of `families`."""
    expand = quadratic(capacity["components"])
    correct = {
        family: probe_grid.cross_validate(features, labels, folds, settings["penalties"], kind, prepare).correct
        for family, kind, prepare in [
            *((kind, kind, None) for kind in CLOSED_FORMS),
            (REFERENCE, REFERENCE, None),
            (QUADRATIC, REFERENCE, expand),
        ]
    }
    widths = sorted(capacity["widths"])
    y = torch.as_tensor(labels, device=features.device)
    stacked = np.full((len(widths), *labels.shape), np.nan)
    for fold in folds:
        stacked[:, fold.test] = _stopped_early(features, y, fold, widths, capacity)
    return correct | {f"mlp_{width}": stacked[index] for index, width in enumerate(widths)}


def quadratic(components: int) -> probe_grid.Prepare:
    """Activations, and products of the first principal components, both as the training part shows them."""

    def prepare(train: Tensor, test: Tensor, train_rows: np.ndarray, test_rows: np.ndarray) -> tuple[Tensor, Tensor]:
        standard = probes.standardise(train)
        here, there = standard.apply(train), standard.apply(test)
        k = min(components, *here.shape)
        values, vectors = torch.linalg.eigh(here.T.double() @ here.double() / len(here))
        scale = values[-k:].clamp(min=torch.finfo(torch.float32).eps).rsqrt()
        project = (vectors[:, -k:] * scale).to(here.dtype)
        first, second = torch.triu_indices(k, k, device=train.device)

        def expanded(part: Tensor) -> Tensor:
            z = part @ project
            return torch.cat([part, z[:, first] * z[:, second]], dim=1)

        return expanded(here), expanded(there)

    return prepare


def _stopped_early(
    features: Float[Tensor, "n d"],
    labels: Bool[Tensor, "n K"],
    fold: Fold,
    widths: Sequence[int],
    capacity: Mapping[str, Any],
) -> Float[np.ndarray, "W m K"]:
    """Right answers on a fold's test texts, every probe at the epoch that an inner fold chose."""
    inner_train, inner_valid = fold.inner[0]
    logits = perceptrons(features[inner_train], labels[inner_train], features[inner_valid], widths, capacity)
    wrong = torch.where(labels[inner_valid], -logits, logits)
    epoch = torch.nn.functional.softplus(wrong).mean(dim=2).argmin(dim=0)
    logits = perceptrons(features[fold.train], labels[fold.train], features[fold.test], widths, capacity)
    of_epoch = epoch[None, :, None].expand(1, *logits.shape[1:])
    signed = torch.where(labels[fold.test], logits, -logits).gather(0, of_epoch)[0]
    return torch.where(signed.abs() < probes.TIE, 0.5, (signed > 0).double()).cpu().numpy()


@dataclass(frozen=True)
class _Stack:
    """Parameters of one probe for each width and label; widths side by side in the last axis of the first layer."""

    into: Tensor
    offset: Tensor
    out: Tensor
    bias: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.into, self.offset, self.out, self.bias))

    def logits(self, x: Float[Tensor, "m d"], widths: Sequence[int]) -> Float[Tensor, "W m K"]:
        d, n_labels, units = self.into.shape
        hidden = torch.addmm(self.offset.reshape(-1), x, self.into.reshape(d, -1)).relu()
        parts = (hidden.reshape(len(x), n_labels, units) * self.out).split(list(widths), dim=2)
        return torch.stack([part.sum(dim=2) for part in parts]) + self.bias[:, None]


def perceptrons(
    train: Float[Tensor, "n d"],
    labels: Bool[Tensor, "n K"],
    test: Float[Tensor, "m d"],
    widths: Sequence[int],
    capacity: Mapping[str, Any],
) -> Float[Tensor, "E W m K"]:
    """Logits of the test texts after every epoch, of one perceptron for each width and label.

    capacity: epochs, batch, learning_rate, weight_decay, seed. First weights are uniform on ±1/√fan-in, the same for every
    label; both follow from the seed and the width alone.
    """
    standard = probes.standardise(train)
    x, held_out = standard.apply(train), standard.apply(test)
    n, d = x.shape
    stack = _first_weights(d, labels.shape[1], widths, capacity["seed"], x)
    order = torch.Generator().manual_seed(capacity["seed"])
    optimiser = torch.optim.AdamW(
        list(stack), lr=capacity["learning_rate"], weight_decay=capacity["weight_decay"], fused=True
    )
    y = labels.to(x.dtype)
    after = []
    for _ in range(capacity["epochs"]):
        for rows in torch.randperm(n, generator=order).to(x.device).split(capacity["batch"]):
            optimiser.zero_grad(set_to_none=True)
            logits = stack.logits(x[rows], widths)
            # Probes have no parameter in common: the gradient of the sum is each one's own.
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, y[rows].expand_as(logits), reduction="none"
            )
            loss.mean(dim=1).sum().backward()
            optimiser.step()
        with torch.no_grad():
            after.append(stack.logits(held_out, widths))
    return torch.stack(after)


def _first_weights(d: int, n_labels: int, widths: Sequence[int], seed: int, like: Tensor) -> _Stack:
    parts = []
    for width in widths:
        generator = torch.Generator().manual_seed(seed + width)

        def uniform(*shape: int, fan_in: int, generator: torch.Generator = generator) -> Tensor:
            return (2 * torch.rand(*shape, generator=generator) - 1) / math.sqrt(fan_in)

        parts.append(
            (
                uniform(d, width, fan_in=d),
                uniform(width, fan_in=d),
                uniform(width, fan_in=width),
                uniform(1, fan_in=width),
            )
        )
    into, offset, out, bias = zip(*parts, strict=True)

    def parameter(values: Tensor) -> Tensor:
        return values.to(like).contiguous().requires_grad_()

    return _Stack(
        into=parameter(torch.cat(into, dim=1)[:, None].expand(d, n_labels, sum(widths))),
        offset=parameter(torch.cat(offset)[None].expand(n_labels, sum(widths))),
        out=parameter(torch.cat(out)[None].expand(n_labels, sum(widths))),
        bias=parameter(torch.stack(bias).expand(len(widths), n_labels)),
    )


def mean_rows(
    values: Float[np.ndarray, "n T"], resampling: Resampling, names: Sequence[str], row: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """One row a target: the mean over its texts, with the interval of its own units."""
    for group in resampling.groups:
        tested = ~np.isnan(values[:, group.columns]).all(axis=1)
        units = group.fewest(tested)
        interval = statistics.bootstrap(
            values[tested][:, group.columns], group.weights, resampling.confidence, units, group.of_text[tested]
        )
        for place, column in enumerate(group.columns):
            yield {
                **row,
                "target": names[column],
                "estimate": interval.estimate[place],
                "lower": interval.lower[place],
                "upper": interval.upper[place],
                "n_texts": int(tested.sum()),
                "n_groups": units,
            }


def peak_rows(
    accuracy: Float[np.ndarray, "F n T"],
    selectivity: Float[np.ndarray, "F n T"],
    names_of_families: Sequence[str],
    resampling: Resampling,
    names: Sequence[str],
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """At which family either peaks, counted from 0, and how much later accuracy does, over the bootstrap."""
    tail = (1 - resampling.confidence) / 2
    for group in resampling.groups:
        for column in group.columns:
            tested = ~np.isnan(accuracy[0, :, column])
            w = np.concatenate(
                [np.ones((1, int(tested.sum()))), group.weights[:, group.of_text[tested]].astype(np.float64)]
            )
            w = w[w.any(axis=1)]
            peaks = {
                # Rounded, or rounding errors would settle ties for the larger family.
                name: np.round(w @ values[:, tested, column].T / w.sum(axis=1, keepdims=True), 9).argmax(axis=1)
                for name, values in (("accuracy", accuracy), ("selectivity", selectivity))
            }
            shown = {
                "peak_accuracy": peaks["accuracy"],
                "peak_selectivity": peaks["selectivity"],
                "peak_difference": peaks["accuracy"] - peaks["selectivity"],
            }
            units = group.fewest(tested)
            for score, found in shown.items():
                lower, upper = np.quantile(found[1:], (tail, 1 - tail), method="inverted_cdf")
                yield {
                    **site,
                    "target": names[column],
                    "score": score,
                    "level": 0.0 if score == "peak_difference" else float("nan"),
                    "estimate": float(found[0]),
                    "lower": float(min(lower, found[0])),
                    "upper": float(max(upper, found[0])),
                    "n_texts": int(tested.sum()),
                    "n_groups": units,
                    "note": "" if score == "peak_difference" else names_of_families[found[0]],
                }
