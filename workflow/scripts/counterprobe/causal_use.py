"""Does the model use what a probe can read: swap a feature's coordinate to its counterfactual, and see what is said.

At one site (layer, position) the residual stream of a text whose target is τ = ±1 is moved along the target's own
Walsh effect w = μ₁ − μ₀, estimated on the folds that do not hold the text out:

    counterfactual   x − τ w            the other way   x + τ w

With ℓ the log-odds of the target's own read-out (the token that is right when the target is True against the other) and
M = mean τ ℓ without any intervention, the effect is the share of the gap between True and False that the swap closes,

    effect = mean over texts of  τ (ℓ(x + τ w) − ℓ(x − τ w)) / (4 M),

0 where nothing reads w and 1 where the site's w alone decides the answer. Moving both ways and halving cancels what any
disturbance does. `walsh_orthogonal` moves along the part of w outside the span of all other parities' effects, at its own
length. Where the target has no read-out, or the model does not answer it, only the divergence from the undisturbed
next-token distributions, KL in bits, averaged over the read-outs, can be compared.

Nulls are single directions as long as w (`coordinate_swaps`): from the covariance WITHIN cells and differences of means
between random balanced labellings decide, isotropic and total-covariance draws stand beside. After Heimersheim and Mendel
2024 (sensitivity of residual directions, https://www.lesswrong.com/posts/LajDyGyiyX8DNNsuF).

Nothing before the site or below the layer depends on a swap: one pass serves them all (`interventions.Resumed`).

Pitfalls: at the last layer a swap reaches no other token, so nothing that is said later can depend on it. A cause is not
the feature itself: what lies upstream of an answer moves it too, which is why the effects on the other read-outs are in
the table. A site between is one of many: "not used" is said of the site, never of the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterprobe import (
    checkpoints,
    coordinate_swaps,
    designs,
    interventions,
    label_controls,
    language_model,
    progress,
    splits,
    statistics,
    tables,
    tokenization,
)
from counterprobe.progress import UserError
from counterprobe.revisions import step_of

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from counterprobe.activations import Store
    from counterprobe.designs import Design

# Kinds of null directions as the column `control` names them.
CONTROLS = {
    coordinate_swaps.WITHIN_CELL: "within_cell",
    coordinate_swaps.DICHOTOMIES: "dichotomy",
    coordinate_swaps.ISOTROPIC: "isotropic",
    coordinate_swaps.TOTAL: "total",
}
TOKENS_AT_ONCE = 16384


@dataclass(frozen=True)
class Group:
    """Sequences of one length with the site at one place: what can be run as one batch.

    asked: (row, read-out, column) of every answer; without read-outs column is the last token and read-out −1.
    """

    ids: Int[Tensor, "b t"]
    texts: Int[np.ndarray, " b"]
    site: int
    asked: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Outcome:
    """What the model says under D shifts: log-odds of every read-out, and KL from what it says undisturbed (bits)."""

    log_odds: Float[np.ndarray, "D R n"]
    divergence: Float[np.ndarray, "D n"]


def measure(
    checkpoint: str | Path,
    store: Store,
    design: Design,
    spec: Mapping[str, Any],
    cell: Mapping[str, str],
    *,
    device: str,
) -> pd.DataFrame:
    """Effects of swapping every chosen target at every chosen layer, and of every null direction (`seed` numbers them).

    spec: `use` (layers, items, nulls, beside, seed), `activations.positions` and `primary_bos`, `probes` (folds),
    `statistics`, `design.protocols`. Rows have the score `effect` (a share of the gap) or `divergence` (bits);
    `effect_on_R` is the mean size of the effect on another read-out R, in shares of R's own gap. Raises UserError for a
    layer that does not exist.
    """
    settings, bos = spec["use"], spec["activations"]["primary_bos"]
    protocol = splits.primary_protocol(
        design, spec["design"]["protocols"], n_folds=spec["probes"]["outer_folds"], seed=spec["probes"]["seed"]
    )
    if protocol is None:
        progress.logger("use").warning("%s: no protocol holds anything out; nothing is swapped", design.name)
        return tables.frame([])
    folds = splits.folds(design, protocol, 0, n_folds=spec["probes"]["outer_folds"], seed=spec["probes"]["seed"])
    fold_of = np.full(len(design.texts), -1)
    for index, fold in enumerate(folds):
        fold_of[fold.test] = index
    chosen = sample(design, fold_of, settings["items"], settings["seed"])
    source = checkpoints.open_checkpoint(checkpoint)
    tokenizer = tokenization.load_tokenizer(source)
    model = language_model.load(source, device=device)
    rows: list[dict[str, Any]] = []
    for position in spec["activations"]["positions"]:
        groups = list(group(design, chosen, tokenizer, model, position=position, bos=bos))
        for layer in layers_of(settings["layers"], store.layers):
            features = np.asarray(store.matrix(position, bos, layer), dtype=np.float64)
            site = {
                **tables.NOT_APPLICABLE,
                **cell,
                "step": step_of(cell["revision"]),
                "position": position,
                "bos": bos,
                "layer": layer,
                "protocol": protocol,
            }
            swap = _Swap(model, tokenizer, groups, design, chosen, layer)
            for target in progress.bar(targets_of(design), label=f"swaps at {position}, layer {layer}"):
                rng = np.random.default_rng([settings["seed"], layer, list(designs.targets(design)).index(target)])
                drawn = directions(features, design, folds, target, settings, rng)
                rows += _rows(swap, drawn, design, chosen, fold_of, target, spec["statistics"], settings, site)
    return tables.frame(rows)


def targets_of(design: Design) -> list[str]:
    """What a verdict is given on: the pre-registered factors, the needed parities and their factors, and the XORs of the
    first pre-registered factor with each of these factors."""
    factors = {*design.primary, *(factor for parity in design.needed for factor in parity.split("^"))}
    pairs = {designs.canonical(design, f"{design.primary[0]}^{factor}") for factor in factors - {design.primary[0]}}
    return [name for name in designs.targets(design) if name in {*factors, *design.needed, *pairs}]


def layers_of(requested: str | Sequence[int], available: Sequence[int]) -> list[int]:
    """`middle` is what was read nearest to half the depth; otherwise the layers listed. Raises UserError."""
    if requested == "middle":
        return [min(available, key=lambda layer: abs(layer - available[-1] / 2))]
    missing = [layer for layer in requested if layer not in available]
    if missing:
        raise UserError(f"use.layers: there is no layer {missing[0]}; there are {available[0]} to {available[-1]}")
    return list(requested)


def sample(design: Design, fold_of: Int[np.ndarray, " n"], n_items: int, seed: int) -> Int[np.ndarray, " m"]:
    """Texts that are swapped: couples evenly from the folds, one of each at least, of about `n_items` items.

    An interval rests on the fewest units of any kind, so couples whose carriers are not in the sample yet come first.
    Of the texts of an item that agree in every swapped factor one is kept, at one place for the whole couple: what else
    differs between them (a suffix, say) tells nothing of these factors.
    """
    rng = np.random.default_rng([seed, 0])
    texts_of: dict[int, list[int]] = {}
    for text in np.flatnonzero(fold_of >= 0):
        texts_of.setdefault(int(design.couples[text]), []).append(int(text))
    carriers = {
        couple: {(factor, units[text]) for factor, units in design.carriers.items() for text in texts}
        for couple, texts in texts_of.items()
    }
    waiting: dict[int, list[int]] = {}
    for couple in rng.permutation(sorted(texts_of)):
        waiting.setdefault(int(fold_of[texts_of[couple][0]]), []).append(int(couple))
    chosen: list[int] = []
    items, met = 0, set()
    for place, fold in enumerate(itertools.cycle(sorted(waiting))):
        if not any(waiting.values()) or (items >= n_items and place >= len(waiting)):
            break
        if waiting[fold]:
            couple = max(waiting[fold], key=lambda couple: len(carriers[couple] - met))
            waiting[fold].remove(couple)
            met |= carriers[couple]
            items += len(np.unique(design.items[texts_of[couple]]))
            chosen.append(couple)
    factors = sorted({factor for target in targets_of(design) for factor in target.split("^")})
    kept: list[int] = []
    for couple in chosen:
        alike: dict[tuple[int, ...], list[int]] = {}
        for text in texts_of[couple]:
            cell = (design.items[text], *(design.factors[name][text] for name in factors))
            alike.setdefault(cell, []).append(text)
        place = rng.integers(2**31)
        kept += [texts[place % len(texts)] for texts in alike.values()]
    return np.sort(kept)


def group(
    design: Design,
    chosen: Int[np.ndarray, " m"],
    tokenizer: PreTrainedTokenizerFast,
    model: PreTrainedModel,
    *,
    position: str,
    bos: bool,
) -> Iterator[Group]:
    """The sequences that ask the read-outs, as batches; a read-out on the way to another is asked in the same pass."""
    context = model.config.max_position_embeddings
    marks = {position: design.marks[position][chosen]}
    texts = [design.texts[index] for index in chosen]
    at = tokenization.encode(tokenizer, texts, marks, bos=bos, context=context)
    sequences: list[tuple[int, ...]] = []
    asks: list[tuple[int, int]] = []
    for readout, asked in enumerate(design.readouts.values()):
        encoded = tokenization.encode(tokenizer, [asked.prefixes[i] for i in chosen], {}, bos=bos, context=context)
        sequences += encoded.ids
        asks += [(readout, place) for place in range(len(chosen))]
    if not design.readouts:
        sequences, asks = list(at.ids), [(-1, place) for place in range(len(chosen))]
    batches: dict[tuple[int, int], list[tuple[int, list[int]]]] = {}
    for host, members in language_model.longest_extensions(sequences, [place for _, place in asks]).items():
        site = int(at.positions[position][asks[host][1]])
        if site >= len(sequences[host]):
            raise UserError(f"the read-outs of design '{design.name}' end before its position {position}")
        batches.setdefault((len(sequences[host]), site), []).append((host, members))
    for (_, site), hosts in sorted(batches.items()):
        yield Group(
            ids=torch.tensor([sequences[host] for host, _ in hosts], device=model.device),
            texts=np.array([asks[host][1] for host, _ in hosts]),
            site=site,
            asked=tuple(
                (row, asks[member][0], len(sequences[member]) - 1)
                for row, (_, members) in enumerate(hosts)
                for member in members
            ),
        )


def directions(
    features: Float[np.ndarray, "n d"],
    design: Design,
    folds: Sequence[splits.Fold],
    target: str,
    settings: Mapping[str, Any],
    rng: np.random.Generator,
) -> dict[str, Float[np.ndarray, "F k d"]]:
    """Moves by kind, each from the training part of a fold: `walsh`, `walsh_orthogonal`, and the kinds of nulls."""
    try:
        labellings = label_controls.dichotomy_labels(design, target, settings["nulls"], rng)
    except UserError as reason:
        progress.logger("use").warning("%s: no dichotomy directions for %s: %s", design.name, target, reason)
        labellings = np.zeros((len(design.texts), 0), dtype=bool)
    fitted = [
        coordinate_swaps.directions(
            features, design, fold.train, target, labellings, settings["nulls"], rng, settings["beside"]
        )
        for fold in folds
    ]
    found = {
        coordinate_swaps.WALSH: np.stack([one.effect[None] for one in fitted]),
        coordinate_swaps.OWN: np.stack([one.own[None] for one in fitted]),
    }
    for kind in fitted[0].nulls | fitted[0].beside:
        found[CONTROLS[kind]] = np.stack([(one.nulls | one.beside)[kind] for one in fitted])
    return found


def _signs(design: Design, target: str) -> Float[np.ndarray, " n"]:
    return np.where(designs.parity(design, target), 1.0, -1.0)


class _Swap:
    """The model's answers with the residual stream of a layer shifted at the site; answers undisturbed are kept."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        groups: Sequence[Group],
        design: Design,
        chosen: Int[np.ndarray, " m"],
        layer: int,
    ) -> None:
        self.device, self.groups, self.layer = model.device, groups, layer
        self.readouts = list(design.readouts.values())
        self.n_texts = len(chosen)
        # Tokens [R, m] that are right, and wrong, where the target is True.
        self.words = tuple(
            np.array([tokens_said(tokenizer, readout, getattr(readout, side), chosen) for readout in self.readouts])
            for side in ("positive", "negative")
        )
        self.resumed = [interventions.Resumed(model, one.ids, one.site) for one in groups]
        width = model.get_input_embeddings().weight.shape[1]
        still = torch.zeros((1, self.n_texts, width), device=model.device)
        self.clean = [self._logits(index, still)[0] for index in range(len(groups))]
        self.undisturbed = self.outcome(np.zeros((1, self.n_texts, width))).log_odds[0]

    def outcome(self, shifts: Float[np.ndarray, "D m d"]) -> Outcome:
        """Log-odds and divergence of all chosen texts under each shift."""
        log_odds = np.full((len(shifts), len(self.readouts), self.n_texts), np.nan)
        divergence = np.zeros((len(shifts), self.n_texts))
        count = np.zeros(self.n_texts)
        for index, one in enumerate(self.groups):
            texts, readouts = one.texts[[row for row, _, _ in one.asked]], np.array([r for _, r, _ in one.asked])
            np.add.at(count, texts, 1)
            clean = self.clean[index].log_softmax(-1)
            size = max(1, TOKENS_AT_ONCE // (one.ids.shape[0] * (one.ids.shape[1] - one.site)))
            for start in range(0, len(shifts), size):
                part = np.arange(start, min(start + size, len(shifts)))
                moved = torch.as_tensor(shifts[part], dtype=torch.float32, device=self.device)
                with torch.inference_mode():
                    found = self._logits(index, moved).log_softmax(-1)
                    bits = (clean.exp() * (clean - found)).sum(-1).cpu().double().numpy() / np.log(2)
                np.add.at(divergence, (part[:, None], texts), bits)
                if self.readouts:
                    every = np.arange(len(texts))
                    right, wrong = (words[readouts, texts] for words in self.words)
                    difference = found[:, every, right].double() - found[:, every, wrong].double()
                    log_odds[part[:, None], readouts, texts] = difference.cpu().numpy()
        return Outcome(log_odds, divergence / count)

    def _logits(self, index: int, shifts: Float[Tensor, "D m d"]) -> Float[Tensor, "D asked v"]:
        one, resumed = self.groups[index], self.resumed[index]
        columns = sorted({column for _, _, column in one.asked})

        def moved(hidden: Float[Tensor, "D b s d"]) -> Float[Tensor, "D b s d"]:
            hidden = hidden.clone()
            hidden[:, :, 0] += shifts[:, one.texts]
            return hidden

        with torch.inference_mode():
            logits = resumed.logits(resumed.run({self.layer: moved}, len(shifts)), columns)
        rows = torch.tensor([row for row, _, _ in one.asked], device=logits.device)
        kept = torch.tensor([columns.index(column) for _, _, column in one.asked], device=logits.device)
        return logits[:, rows, kept]


def tokens_said(
    tokenizer: PreTrainedTokenizerFast, readout: designs.ReadOut, words: Sequence[str], chosen: Int[np.ndarray, " m"]
) -> Int[np.ndarray, " m"]:
    """The tokens that some texts' words are after their prefixes. UserError for a word that is not one token."""
    known: dict[str, int] = {}
    for index in chosen:
        if words[index] not in known:
            known[words[index]] = language_model.next_token(tokenizer, readout.prefixes[index], words[index])
    return np.array([known[words[index]] for index in chosen])


def _rows(
    swap: _Swap,
    drawn: Mapping[str, Float[np.ndarray, "F k d"]],
    design: Design,
    chosen: Int[np.ndarray, " m"],
    fold_of: Int[np.ndarray, " n"],
    target: str,
    inference: Mapping[str, Any],
    settings: Mapping[str, Any],
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """All numbers of one target at one site."""
    tau = _signs(design, target)[chosen]
    items, carriers = (None if units is None else units[chosen] for units in statistics.inference_units(design, target))
    weights = statistics.two_way_weights(
        items, carriers, inference["resamples"], np.random.default_rng([settings["seed"], 1]), design.strata[chosen]
    )
    units = statistics.fewest_units(items, carriers)
    readouts = list(design.readouts)
    margins = np.array([_signs(design, name)[chosen] * swap.undisturbed[r] for r, name in enumerate(readouts)])
    margins = margins.reshape(len(readouts), len(chosen))
    answered = statistics.bootstrap(margins.T, weights, inference["confidence"], units)
    # A read-out that the model gets wrong has no gap to close.
    speaks = {name: bool(answered.lower[r] > 0) for r, name in enumerate(readouts)}
    own = readouts.index(target) if speaks.get(target, False) else None
    row = {**site, "target": target, "n_texts": len(chosen), "n_groups": units}

    def ends(values: Float[np.ndarray, "k m"]) -> Iterator[dict[str, float]]:
        interval = statistics.bootstrap(values.T, weights, inference["confidence"], units)
        for k in range(len(values)):
            yield {name: float(getattr(interval, name)[k]) for name in ("estimate", "lower", "upper")}

    for kind, found in drawn.items():
        control = kind if kind in CONTROLS.values() else "none"
        towards = found[fold_of[chosen]].transpose(1, 0, 2) * tau[None, :, None]
        forth, back = swap.outcome(towards), swap.outcome(-towards)
        closed = (forth.log_odds - back.log_odds) / 4
        moved = (forth.divergence + back.divergence) / 2
        here = {**row, "probe": kind if control == "none" else "null", "control": control}
        for k, interval in enumerate(ends(moved)):
            yield {**here, "seed": k, "score": "divergence", "level": 0.0, **interval}
        for r, name in enumerate(readouts):
            if not speaks[name] or (control != "none" and r != own):
                continue
            share = closed[:, r] / margins[r].mean()
            if r == own:
                for k, interval in enumerate(ends(tau * share)):
                    yield {**here, "seed": k, "score": "effect", "level": 0.0, **interval}
            else:
                # Which way another read-out should move nobody says: only how far.
                for k, interval in enumerate(ends(np.abs(share))):
                    yield {**here, "seed": k, "score": f"effect_on_{name}", **interval}
