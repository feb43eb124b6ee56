"""What moves the model, and what else it moves: the residual stream steered along every direction of `directions`.

Texts are divided by folds into two halves that share neither items nor carriers. Directions are made from the first
half; position, layer and coefficient are chosen there; everything reported is of the second half.

A text whose feature is y = ±1 is steered to its counterfactual: x − y c v at the steered tokens, v as long as μ₊ − μ₋, so
that c = 1 is one exchange of the class means and all directions are compared at equal L2 norm. Positions:

    answer      the token after which the model says the feature, alone
    generated   every token from the last of the probed text on
    all         every token
    front       the first tokens, each by a difference of its own (ActAdd only)

Scores, over the texts of the second half:

    flip            share whose answer is the counterfactual one (undisturbed: the share that the model gets wrong)
    flip_on_G       share whose answer to another feature G is another one than without steering: off-target
    off_target      mean of these over the other features that the steered tokens can reach
    probe_flip, probe_flip_on_G, probe_off_target, probe_logit
                    the first three for what probes read instead of what is said, and the mean movement of the steered
                    feature's own probe to the counterfactual, in logits (`held_out_probes`). Of designs whose read-outs
                    the configuration gives, at the steered feature's token after the last block, for every feature, also
                    those of which nothing that is said depends; no behaviour
    log_odds        mean movement of the feature's log-odds to the counterfactual, nats
    delta_nll       added to −log P of the tokens that no feature decides, nats a token; `divergence` the KL there, bits
    probability     movement of P(True's token) − P(False's token) to the counterfactual
    repetition      share of the bigrams of a generated continuation that it has said before
    auroc           of the direction as a detector of the feature
    reads_others    mean size of the other features' effects on the direction's coordinate, as a share of the feature's
                    own: 0 where the direction is orthogonal to the vectors of all others (C29)
    effect          log_odds as a share of the gap between True and False
    nie_false_true  normalised indirect effect, with Geometry of Truth's scaling (Marks and Tegmark 2024,
                    arXiv:2310.06824, sec. 6): the direction rescaled to move the class means by the same amount along
                    itself as their distance, added at every steered layer up to the chosen one
    jacobian_share  share of the direction in the leading right singular subspace of the mean Jacobian of the last
                    residual: what the rest of the network reads

`probe` says direction and dose, `diff_mean:1.5`; `:chosen` is the setting chosen on the first half, `:matched` the
smallest dose that flips `REACHED` of the first half at the layer chosen for diff_mean, `:equal` a coefficient of 1 there.
`:divergence` (C26; of the first feature of the pre-registered pair) is the dose at which neutral tokens diverge by
`EQUAL_DIVERGENCE` bits on the first half: the averaged difference at every token, and single prompt pairs at the front
(`seed` is the pair); the row of an SAE, and null directions of the within-cell covariance (C25), at generated tokens. Each
way at the layer where it then moves the answer most.
Nulls (`control`) are as long as μ₊ − μ₋, with the effects of all named features projected out (`coordinate_swaps`); the
band of a kind holds a direction that means nothing with 95%.

What cannot be measured has a row with the reason in `note` and no number: a feature without a read-out, an answer of more
than one token, a direction of norm zero, a read-out before the first steered token, a flip no coefficient reaches.

Pitfalls. A direction may flip an answer because the residual stream left what the model knows: see delta_nll and the
nulls. The answer's own layer is read by the unembedding alone; steering there writes the answer, not the feature.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from counterprobe import (
    activations,
    causal_use,
    checkpoints,
    coordinate_swaps,
    designs,
    dictionary_fitting,
    dictionary_rows,
    directions,
    extraction,
    held_out_probes,
    interventions,
    label_controls,
    language_model,
    matched_divergence,
    progress,
    splits,
    statistics,
    tables,
    tokenization,
)
from counterprobe.detection import auroc
from counterprobe.directions import Affine
from counterprobe.held_out_probes import HeldOutProbes
from counterprobe.interventions import Places, Resumed
from counterprobe.progress import UserError
from counterprobe.revisions import step_of

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from counterprobe.designs import Design
    from counterprobe.dictionary_fitting import Fitted

ANSWER, GENERATED, ALL, FRONT = "answer", "generated", "all", "front"
# A feature is steered when this share of its answers is the counterfactual one, and nothing else is disturbed by more.
REACHED, MOST_OFF_TARGET, MOST_NLL = 0.95, 0.1, 0.1
TOKENS_AT_ONCE = 16384
JACOBIAN_TEXTS = 32
# At equal price: bits a neutral token, and prompt pairs that are drawn and that have to reach it.
EQUAL_DIVERGENCE, PAIR_SETS, FEWEST_SETS = 0.1, 24, 20
AVERAGED, PAIRED, LEARNED = "diff_mean", "actadd_1_aligned", "row_sae"
NULLS = {
    coordinate_swaps.WITHIN_CELL: "within_cell",
    coordinate_swaps.DICHOTOMIES: "dichotomy",
    coordinate_swaps.ISOTROPIC: "isotropic",
}
COMPARED = (("logistic", "diff_mean"), ("logistic", "surgical_regressed"), ("logistic", "surgical_pinv"))


@dataclass(frozen=True)
class Group:
    """Equally long token sequences with everything at one place: what can be run as one batch.

    texts: numbers within the sample. asked: (read-out, column after which it is said). sites: read-out -> column of its
    own token. end: column of the probed text's last token. neutral: columns whose next token no feature decides.
    """

    ids: Int[Tensor, "b t"]
    texts: Int[np.ndarray, " b"]
    asked: tuple[tuple[int, int], ...]
    sites: Mapping[int, int]
    end: int
    neutral: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """What the model says under D moves; NaN where a read-out comes before the first steered token. `read`: logits of the
    sample's probes of the steered feature's token; F = 0 where it has none."""

    log_odds: Float[np.ndarray, "D R m"]
    probability: Float[np.ndarray, "D R m"]
    delta_nll: Float[np.ndarray, "D q"]
    divergence: Float[np.ndarray, "D q"]
    read: Float[np.ndarray, "D F m"]


@dataclass(frozen=True)
class Move:
    """A direction with its coefficient: [d], or [t, d] at the front, or an affine map."""

    along: np.ndarray | Affine
    coefficient: float


@dataclass(frozen=True)
class Setting:
    """Where and how strongly a feature is steered."""

    position: str
    layer: int
    coefficient: float


@dataclass(frozen=True)
class Way:
    """A way of steering that is held against another at equal price: its moves at a layer, at least `fewest` of which have
    to reach it. control: kind of null direction, or none."""

    name: str
    position: str
    control: str
    vectors: Callable[[int], Sequence[np.ndarray]]
    layers: Sequence[int]
    fewest: int


def measure(
    checkpoint: str | Path,
    design: Design,
    spec: Mapping[str, Any],
    cell: Mapping[str, str],
    dictionaries: str | Path | None = None,
    *,
    device: str,
) -> pd.DataFrame:
    """Every feature with a read-out steered along every direction; the rows that the module describes.

    dictionaries: the manifest of those learned of this model and design, whose rows are then directions too.

    spec: `steering`, `activations.primary_bos`, `probes` (outer_folds, seed), `statistics`, `design` (protocols,
    unreadable). Without `steering.coefficients` only detection and effect are measured. Raises UserError for a layer or a
    direction that does not exist.
    """
    settings, bos = spec["steering"], spec["activations"]["primary_bos"]
    source = checkpoints.open_checkpoint(checkpoint)
    tokenizer = tokenization.load_tokenizer(source)
    design = extraction.readable(design, tokenizer, spec["design"]["unreadable"])
    given = settings.get("continuations", {}).get(design.name, {})
    design, reasons = with_continuations(design, given, tokenizer)
    site = {**tables.NOT_APPLICABLE, **cell, "step": step_of(cell["revision"]), "bos": bos}
    rows = [_excluded(site, target, "none", reason) for target, reason in reasons.items()]
    halves = halved(design, spec)
    if halves is None or not design.readouts:
        return tables.frame(rows)
    protocol, first, second = halves
    site["protocol"] = protocol
    model = language_model.load(source, device=device)
    width = model.get_input_embeddings().weight.shape[1]
    learned = dictionary_fitting.open_folder(dictionaries, width=width) if dictionaries else []
    names = directions.names(settings["directions"], dict.fromkeys(dictionary_rows.KINDS) if learned else None)
    neutral = settings.get("neutral", {}).get(design.name, [])
    sample = partial(Sample, model, tokenizer, design, bos=bos)
    fitting, detecting = sample(np.flatnonzero(first >= 0), []), sample(np.flatnonzero(second >= 0), [])
    last = len(activations.decoder_blocks(model))
    layers = layers_of(settings["layers"], last)
    read = [last] if given and "coefficients" in settings else []
    vectors, held_out = fitting.residuals([*layers, *read]), detecting.residuals([*layers, *read])
    readers = {"choose": _readers(design, vectors, first, settings["penalty"]) if read else ()}
    readers["report"] = _readers(design, held_out, second, settings["penalty"]) if read else ()
    reported = whole_couples(design, second, settings["report_items"], settings["seed"])
    samples = {"report": sample(reported, neutral, readers["report"])}
    if "coefficients" in settings:
        chosen = whole_couples(design, first, settings["choose_items"], settings["seed"])
        samples["choose"] = sample(chosen, neutral, readers["choose"])
    for readout, target in enumerate(progress.bar(list(design.readouts), label="steered features")):
        feature = _Feature(
            *(target, names, spec, site, samples, fitting, detecting, layers),
            *(vectors[readout], held_out[readout], learned),
        )
        rows += feature.rows()
    return tables.frame(rows)


def with_continuations(
    design: Design, continuations: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast
) -> tuple[Design, dict[str, str]]:
    """The design with the read-outs that its configuration gives, and the reason of every feature that has none.

    `continuations`: feature -> {prompt, positive, negative}; the prompt follows every text.
    """
    readouts = dict(design.readouts)
    reasons = {}
    for name, said in continuations.items():
        target = designs.canonical(design, name)
        prefixes = tuple(f"{text}{said.get('prompt', '')}" for text in design.texts)
        words = (said["positive"], said["negative"])
        try:
            for prefix in prefixes:
                for word in words:
                    language_model.next_token(tokenizer, prefix, word)
        except UserError as reason:
            reasons[target] = str(reason)
            continue
        n = len(prefixes)
        readouts[target] = designs.ReadOut(target, prefixes, (words[0],) * n, (words[1],) * n)
    for factor in design.factors:
        if factor not in readouts and factor not in reasons:
            reasons[factor] = "no read-out: no token that follows depends on this feature alone"
    return replace(design, readouts=readouts), reasons


def _readers(
    design: Design, x: Float[np.ndarray, "R layers m d"], fold_of: Int[np.ndarray, " n"], penalty: float
) -> list[HeldOutProbes]:
    """For the token of every feature with a read-out, probes of all features on the last of these layers."""
    features = {name: designs.parity(design, name) for name in dict.fromkeys([*design.factors, *design.readouts])}
    return [held_out_probes.cross_fitted(at_token[-1], features, fold_of, penalty) for at_token in x]


def halved(design: Design, spec: Mapping[str, Any]) -> tuple[str, Int[np.ndarray, " n"], Int[np.ndarray, " n"]] | None:
    """Protocol, and the fold of every text of each half (−1 for the rest); None where nothing can be held out."""
    settings = {"n_folds": spec["probes"]["outer_folds"], "seed": spec["probes"]["seed"]}
    protocol = splits.primary_protocol(design, spec["design"]["protocols"], **settings)
    if protocol is None:
        progress.logger("steering").warning("%s: no protocol holds anything out; nothing is steered", design.name)
        return None
    fold_of = np.full(len(design.texts), -1)
    folds = splits.folds(design, protocol, 0, **settings)
    for index, fold in enumerate(folds):
        fold_of[fold.test] = index
    early = fold_of < len(folds) // 2
    return protocol, np.where(early, fold_of, -1), np.where(early, -1, fold_of)


def whole_couples(design: Design, fold_of: Int[np.ndarray, " n"], n_items: int, seed: int) -> Int[np.ndarray, " m"]:
    """Texts of about `n_items` items: whole couples, in turn from every fold, one of each at least. All of their texts, since
    every feature with a read-out is steered, and balanced so."""
    rng = np.random.default_rng([seed, 0])
    held_out = fold_of >= 0
    couples, first = np.unique(design.couples[held_out], return_index=True)
    fold = fold_of[held_out][first]
    order = rng.permutation(len(couples))
    rank = np.empty(len(couples), dtype=np.int64)
    for k in np.unique(fold):
        members = order[fold[order] == k]
        rank[members] = np.arange(len(members))
    wanted, items = [], 0
    for couple in couples[np.lexsort((fold, rank))]:
        if items >= n_items and len(wanted) >= len(np.unique(fold)):
            break
        wanted.append(couple)
        items += len(np.unique(design.items[design.couples == couple]))
    return np.flatnonzero(np.isin(design.couples, wanted) & held_out)


def choose(
    flips: Float[np.ndarray, " s"], off_target: Float[np.ndarray, "s others"], delta_nll: Float[np.ndarray, " s"]
) -> tuple[int, bool]:
    """Index of the setting to report, and whether it flips `REACHED` within both limits.

    Among settings within the limits the one that flips most, and of those that flip enough the least disturbing; where
    none is within them, the one that exceeds them least. What was not measured (NaN) limits nothing.
    """
    off = np.nan_to_num(np.nanmax(np.nan_to_num(off_target, nan=0.0), axis=1, initial=0.0))
    nll = np.nan_to_num(delta_nll)
    beyond = np.maximum(off - MOST_OFF_TARGET, 0) + np.maximum(nll - MOST_NLL, 0)
    enough = (1 + REACHED) / 2
    best = np.lexsort((off + np.maximum(nll, 0), -np.minimum(flips, enough), beyond))[0]
    return int(best), bool(flips[best] >= REACHED and beyond[best] == 0)


def band(draws: Float[np.ndarray, " k"], confidence: float = 0.95) -> tuple[float, float]:
    """Between which two of k exchangeable nulls another one lies with `confidence`: order statistics of rank
    (k + 1)(1 − confidence)/2 from either end, exact for k = 39 and 95%. Raises UserError where k is too small."""
    rank = int((len(draws) + 1) * (1 - confidence) / 2 + 1e-9)
    if rank < 1:
        raise UserError(f"{len(draws)} null directions make no band of {confidence:.0%}; draw at least 39")
    ordered = np.sort(draws)
    return float(ordered[rank - 1]), float(ordered[-rank])


def reads_others(
    coordinate: Float[np.ndarray, " n"], features: Mapping[str, Bool[np.ndarray, " n"]], target: str
) -> float:
    """Mean |effect| of the other features on a coordinate over that of its own, from one least-squares regression."""
    known = [name for name, labels in features.items() if 0 < labels.sum() < len(labels)]
    signs = np.stack([np.ones(len(coordinate)), *(np.where(features[name], 1.0, -1.0) for name in known)], axis=1)
    effects = np.abs(np.linalg.lstsq(signs, coordinate, rcond=None)[0][1:])
    own = known.index(target)
    return float(np.delete(effects, own).mean() / max(effects[own], np.finfo(float).tiny))


def repetition(tokens: Sequence[int]) -> float:
    """Share of the bigrams that occurred before in the same text; 0 for fewer than two tokens."""
    bigrams = list(itertools.pairwise(tokens))
    return 1 - len(set(bigrams)) / len(bigrams) if bigrams else 0.0


class Sample:
    """Some texts of a design as token sequences, and what a model says of them under any move.

    `readers`: for every read-out, probes of its own token after the last block; none where nothing is read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        design: Design,
        chosen: Int[np.ndarray, " m"],
        neutral: Sequence[str],
        readers: Sequence[HeldOutProbes] = (),
        *,
        bos: bool,
    ) -> None:
        self.model, self.tokenizer, self.design, self.chosen = model, tokenizer, design, chosen
        self.readers = readers
        self.readouts = list(design.readouts.values())
        self.targets = list(design.readouts)
        self.signs = np.array([np.where(designs.parity(design, name)[chosen], 1.0, -1.0) for name in self.targets])
        self.words = [
            np.array(
                [
                    causal_use.tokens_said(tokenizer, readout, side, chosen)
                    for side in (readout.positive, readout.negative)
                ]
            )
            for readout in self.readouts
        ]
        self.groups = list(_groups(model, tokenizer, design, chosen, bos=bos))
        self.neutral = list(_neutral_groups(model, tokenizer, neutral, bos=bos))
        # Neutral strings are no texts: they get numbers of their own.
        self.n_neutral = len(neutral) if neutral else len(chosen)
        self._resumed: dict[tuple[int, int], Resumed] = {}
        self._clean: dict[tuple[int, int], Tensor] = {}

    def residuals(self, layers: Sequence[int]) -> Float[np.ndarray, "R layers m d"]:
        """Residual vectors at every feature's own token."""
        width = self.model.get_input_embeddings().weight.shape[1]
        found = np.empty((len(self.readouts), len(layers), len(self.chosen), width))
        for group in self.groups:
            first = min(group.sites.values())
            size = max(1, TOKENS_AT_ONCE // group.ids.shape[1])
            for start in range(0, len(group.ids), size):
                run = Resumed(self.model, group.ids[start : start + size], first)
                for readout, column in group.sites.items():
                    for place, layer in enumerate(layers):
                        at_site = run.entering[layer][:, column - first]
                        found[readout, place, group.texts[start : start + size]] = at_site.cpu().numpy()
        return found

    def tokens(self, places: Sequence[int], layer: int, length: int) -> Float[np.ndarray, "n length d"]:
        """Residual streams of the first tokens of some texts of the sample, by their number in it."""
        width = self.model.get_input_embeddings().weight.shape[1]
        found = np.full((len(places), length, width), np.nan)
        for group in self.groups:
            rows = [(row, place) for row, place in enumerate(places) if place in set(group.texts.tolist())]
            if rows:
                where = [int(np.flatnonzero(group.texts == place)[0]) for _, place in rows]
                run = Resumed(self.model, group.ids[where, :length], 0)
                found[[row for row, _ in rows]] = run.entering[layer].cpu().numpy()
        return found

    def shortest(self) -> int:
        """Tokens of the shortest text."""
        return min(group.end for group in self.groups) + 1

    def outcome(self, readout: int, position: str, layers: Sequence[int], moves: Sequence[Move]) -> Outcome:
        """Steer every text to its counterfactual in one feature."""
        n, d = len(self.chosen), len(moves)
        log_odds, probability = (np.full((d, len(self.readouts), n), np.nan) for _ in range(2))
        reader = self.readers[readout] if self.readers else None
        read = np.full((d, len(reader.names) if reader else 0, n), np.nan)
        sums = np.zeros((2, d, self.n_neutral))
        count = np.zeros(self.n_neutral)
        for index, group in enumerate([*self.groups, *self.neutral]):
            own = index < len(self.groups)
            if own and readout not in group.sites:
                continue
            places = _places(group, group.sites[readout if own else -1], position, moves)
            run, later = self._run(index, group, places.first)
            signs = self.signs[readout][group.texts] if own else np.where(group.texts % 2, 1.0, -1.0)
            # With neutral strings given, the design's own texts are for answers only.
            neutral = (
                [column for column in group.neutral if column >= places.first] if own != bool(self.neutral) else []
            )
            asked = [(r, column) for r, column in group.asked if column >= places.first]
            columns = sorted({column for _, column in asked} | set(neutral))
            if not columns:
                continue
            if neutral:
                np.add.at(count, group.texts, len(neutral))
            size = max(1, TOKENS_AT_ONCE // (len(group.ids) * (group.ids.shape[1] - places.first)))
            for start in range(0, d, size):
                part = list(range(start, min(start + size, d)))
                edit = partial(_moved, moves=[moves[k] for k in part], signs=signs, places=places)
                with torch.inference_mode():
                    hidden = run.run(dict.fromkeys(layers, edit), len(part))
                    said = run.logits(hidden, columns).log_softmax(-1)
                if reader is not None and own and readout in dict(group.asked):
                    at_site = hidden[:, :, group.sites[readout] - places.first].cpu().double().numpy()
                    logits = reader.logits(at_site, self.chosen[group.texts])
                    read[np.ix_(part, range(read.shape[1]), group.texts)] = logits.transpose(0, 2, 1)
                for r, column in asked:
                    here = said[:, :, columns.index(column)].cpu().double().numpy()
                    rows = np.arange(len(group.texts))
                    right, wrong = (here[:, rows, self.words[r][side, group.texts]] for side in (0, 1))
                    log_odds[np.ix_(part, [r], group.texts)] = (right - wrong)[:, None]
                    probability[np.ix_(part, [r], group.texts)] = (np.exp(right) - np.exp(wrong))[:, None]
                for column in neutral:
                    clean, found = later[:, column - places.first], said[:, :, columns.index(column)]
                    following = group.ids[:, column + 1]
                    lost = (clean - found).gather(-1, following.expand(len(part), -1)[..., None])[..., 0]
                    bits = (clean.exp() * (clean - found)).sum(-1) / math.log(2)
                    for which, values in enumerate((lost, bits)):
                        np.add.at(sums[which], (np.array(part)[:, None], group.texts), values.cpu().double().numpy())
        with np.errstate(invalid="ignore", divide="ignore"):
            return Outcome(log_odds, probability, *(sums / np.where(count, count, np.nan)), read)

    def gradient(self, readout: int, layer: int, most: int) -> Float[np.ndarray, " d"]:
        """Mean gradient of a read-out's log-odds with respect to the residual stream at its own token."""
        total, n = 0.0, 0
        for group in self.groups:
            if readout not in dict(group.asked) or n >= most:
                continue
            ids, texts = group.ids[: most - n], group.texts[: most - n]
            column = dict(group.asked)[readout]
            run = Resumed(self.model, ids[:, : column + 1], group.sites[readout])
            at_site = torch.zeros(len(ids), run.entering[layer].shape[-1], device=ids.device, requires_grad=True)
            with torch.enable_grad():
                said = run.logits(run.run({layer: partial(_nudged, at_site=at_site)}), [column])[0, :, 0]
                every = torch.arange(len(ids))
                right, wrong = (torch.as_tensor(self.words[readout][side, texts]) for side in (0, 1))
                (said[every, right] - said[every, wrong]).sum().backward()
            total, n = total + at_site.grad.double().sum(0).cpu().numpy(), n + len(ids)
        return total / n

    def jacobian(self, readout: int, layer: int, most: int) -> Float[np.ndarray, "d d"]:
        """Mean Jacobian of the last residual at a feature's own token with respect to that of `layer`."""
        group = max((g for g in self.groups if readout in g.sites), key=lambda g: len(g.ids))
        ids = group.ids[:most, : group.sites[readout] + 1]
        run = Resumed(self.model, ids, group.sites[readout])
        at_site = torch.zeros(len(ids), run.entering[layer].shape[-1], device=ids.device, requires_grad=True)
        with torch.enable_grad():
            left = run.run({layer: partial(_nudged, at_site=at_site)})[0, :, 0].mean(0)
            found = [torch.autograd.grad(one, at_site, retain_graph=True)[0].sum(0) for one in left]
        return torch.stack(found).double().cpu().numpy()

    def _run(self, index: int, group: Group, first: int) -> tuple[Resumed, Tensor]:
        """The clean run of a group from a token on, and what the model says there undisturbed."""
        key = (index, first)
        if key not in self._resumed:
            run = Resumed(self.model, group.ids, first)
            with torch.no_grad():
                later = run.logits(run.entering[-1], range(first, group.ids.shape[1])).log_softmax(-1)
            self._resumed[key], self._clean[key] = run, later
        return self._resumed[key], self._clean[key]


def _groups(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    design: Design,
    chosen: Int[np.ndarray, " m"],
    *,
    bos: bool,
) -> Iterator[Group]:
    """Batches of sequences. Where every read-out of a text lies on the way to one of them, each is steered at its own
    token; otherwise all are steered at the text's last token, which all prompts share."""
    encode = partial(tokenization.encode, tokenizer, bos=bos, context=model.config.max_position_embeddings)
    ends = [len(ids) - 1 for ids in encode([design.texts[i] for i in chosen], {}).ids]
    sequences: list[tuple[int, ...]] = []
    asks: list[tuple[int, int]] = []
    for number, readout in enumerate(design.readouts.values()):
        sequences += encode([readout.prefixes[i] for i in chosen], {}).ids
        asks += [(number, place) for place in range(len(chosen))]
    hosts = language_model.longest_extensions(sequences, [place for _, place in asks])
    nested = len(hosts) == len(chosen)
    batches: dict[tuple, list[tuple[tuple[int, ...], int]]] = {}
    for host, members in hosts.items():
        place = asks[host][1]
        asked = tuple(sorted((asks[member][0], len(sequences[member]) - 1) for member in members))
        batches.setdefault((len(sequences[host]), ends[place], asked), []).append((sequences[host], place))
    for (length, end, asked), members in sorted(batches.items()):
        said = {column for _, column in asked}
        if min(said) < end:
            raise UserError(f"a read-out of design '{design.name}' comes before the end of its text")
        # In prompts of their own a feature's sequence can be steered for any other feature too.
        sites = dict(asked) if nested else dict.fromkeys(range(len(design.readouts)), end)
        yield Group(
            ids=torch.tensor([ids for ids, _ in members], device=model.device),
            texts=np.array([place for _, place in members]),
            asked=asked,
            sites=sites,
            end=end,
            neutral=tuple(column for column in range(end, length - 1) if column not in said),
        )


def _neutral_groups(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, strings: Sequence[str], *, bos: bool
) -> Iterator[Group]:
    """Strings that were given as neutral: steered from their middle on, one way and the other in turn."""
    if not strings:
        return
    encoded = tokenization.encode(
        tokenizer, list(strings), {}, bos=bos, context=model.config.max_position_embeddings
    ).ids
    for length in sorted({len(ids) for ids in encoded}):
        rows = [row for row, ids in enumerate(encoded) if len(ids) == length]
        middle = (length - 1) // 2
        yield Group(
            ids=torch.tensor([encoded[row] for row in rows], device=model.device),
            texts=np.array(rows),
            asked=(),
            sites={-1: middle},
            end=middle,
            neutral=tuple(range(middle, length - 1)),
        )


def _places(group: Group, site: int, position: str, moves: Sequence[Move]) -> Places:
    if position == ANSWER:
        return Places(site, site)
    if position == GENERATED:
        return Places(group.end)
    if position == FRONT:
        return Places(0, len(moves[0].along) - 1)
    return Places(0)


def _moved(
    hidden: Float[Tensor, "D b s d"], *, moves: Sequence[Move], signs: Float[np.ndarray, " b"], places: Places
) -> Float[Tensor, "D b s d"]:
    columns = places.within(places.first, hidden.shape[2])
    changed = hidden.clone()
    kind = {"dtype": hidden.dtype, "device": hidden.device}
    sign = torch.as_tensor(signs, **kind)[:, None, None]
    added = [k for k, move in enumerate(moves) if not isinstance(move.along, Affine)]
    if added:
        vectors = np.stack([moves[k].coefficient * np.atleast_2d(moves[k].along) for k in added])
        vectors = vectors[:, : columns.stop - columns.start] if vectors.shape[1] > 1 else vectors
        changed[added, :, columns] -= sign * torch.as_tensor(vectors, **kind)[:, None]
    for k, move in enumerate(moves):
        if isinstance(move.along, Affine):
            projection, mean = (torch.as_tensor(part, **kind) for part in (move.along.projection, move.along.mean))
            here = hidden[k, :, columns]
            changed[k, :, columns] = here - 2 * move.coefficient * (here - mean) @ projection.T
    return changed


def _nudged(hidden: Float[Tensor, "D b s d"], *, at_site: Float[Tensor, "b d"]) -> Float[Tensor, "D b s d"]:
    return torch.cat([hidden[:, :, :1] + at_site[None, :, None], hidden[:, :, 1:]], dim=2)


def _excluded(site: Mapping[str, Any], target: str, probe: str, reason: str, score: str = "flip") -> dict[str, Any]:
    empty = {"score": score, "estimate": math.nan, "n_texts": 0, "n_groups": 0}
    return {**site, "target": target, "probe": probe, **empty, "note": f"excluded: {reason}"}


class _Feature:
    """All rows of one steered feature."""

    def __init__(
        self,
        target: str,
        names: Sequence[str],
        spec: Mapping[str, Any],
        site: Mapping[str, Any],
        samples: Mapping[str, Sample],
        fitting: Sample,
        detecting: Sample,
        layers: Sequence[int],
        x: Float[np.ndarray, "layers n d"],
        held_out: Float[np.ndarray, "layers o d"],
        learned: Sequence[Fitted] = (),
    ) -> None:
        design = fitting.design
        self.design, self.target, self.settings = design, target, spec["steering"]
        self.readout = fitting.targets.index(target)
        self.choosing, self.reporting, self.fitting = samples.get("choose"), samples["report"], fitting
        self.site = {**site, "target": target}
        self.layers = list(layers)
        labels = designs.parity(design, target)
        self.held_out_labels = labels[detecting.chosen]
        self.held_out_features = {name: values[detecting.chosen] for name, values in design.factors.items()}
        self.held_out_features.setdefault(target, self.held_out_labels)
        features = {name: values[fitting.chosen] for name, values in design.factors.items()}
        pairs = directions.minimal_pairs(design.items[fitting.chosen], features, target)
        features.setdefault(target, labels[fitting.chosen])
        self.material, self.made, self.projected, self.reasons = {}, {}, {}, {}
        for place, layer in enumerate(self.layers):
            material = directions.Material(
                x=x[place],
                target=target,
                features=features,
                pairs=pairs,
                penalty=self.settings["penalty"],
                seed=self.settings["seed"],
                gradient=fitting.gradient(self.readout, layer, self.settings["gradient_texts"]),
                dictionary=dictionary_rows.most_selective(
                    dictionary_rows.at_layer(learned, layer), x[place], labels[fitting.chosen]
                ),
            )
            self.material[layer] = material
            for name in names:
                try:
                    self.made[name, layer] = directions.make(name, material)
                except directions.Excluded as reason:
                    self.reasons[name, layer] = str(reason)
                    continue
                self.projected[name, layer] = held_out[place] @ self.made[name, layer]
        self.names = [name for name in names if any((name, layer) in self.made for layer in self.layers)]
        items, carriers = (
            None if units is None else units[self.reporting.chosen]
            for units in statistics.inference_units(design, target)
        )
        strata = design.strata[self.reporting.chosen]
        # A topic of which one couple was sampled has nothing to be resampled within.
        alone = any(len(np.unique(items[strata == stratum])) < 2 for stratum in np.unique(strata))
        inference = spec["statistics"]
        self.confidence = inference["confidence"]
        self.weights = statistics.two_way_weights(
            items,
            carriers,
            inference["resamples"],
            np.random.default_rng([self.settings["seed"], 1]),
            None if alone else strata,
        )
        self.units = statistics.fewest_units(items, carriers)
        still = {half: self._undisturbed(sample) for half, sample in samples.items()}
        self.clean = {half: found.log_odds[0] for half, found in still.items()}
        self.clean_read = {half: found.read[0] for half, found in still.items()}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Everything of this feature."""
        for (name, layer), reason in self.reasons.items():
            yield _excluded({**self.site, "layer": layer}, self.target, f"{name}:none", reason)
        yield from self._detection()
        if self.choosing is None or not self.names:
            return
        for name, reason in self.reporting.readers[self.readout].excluded.items() if self.reporting.readers else ():
            score = "probe_flip" if name == self.target else f"probe_flip_on_{name}"
            yield _excluded(self.site, self.target, "none", reason, score)
        chosen, tried = self._choose()
        yield from self._doses(chosen)
        for position in self.settings["positions"]:
            common = chosen.get(
                ("diff_mean", position), next((s for (_, p), s in chosen.items() if p == position), None)
            )
            if common is not None and position != FRONT:
                yield from self._compared(common, tried)
                yield from self._nulls(common)
        common = chosen.get(("diff_mean", ANSWER), next(iter(chosen.values())))
        if self.target == self.design.primary[0]:
            yield from self._at_equal_divergence()
        yield from self._scaled(common)
        yield from self._read(common)
        yield from self._texts(chosen)

    def _undisturbed(self, sample: Sample) -> Outcome:
        still = [Move(np.zeros_like(next(iter(self.material.values())).x[0]), 0.0)]
        return sample.outcome(self.readout, ALL, [self.layers[0]], still)

    def _moves(self, name: str, layer: int, coefficients: Sequence[float], position: str) -> list[Move]:
        if position == FRONT:
            along: np.ndarray | Affine = self._front(name, layer)
        elif name == directions.LEACE:
            along = directions.leace(self.material[layer])
        else:
            along = self.made[name, layer]
        return [Move(along, coefficient) for coefficient in coefficients]

    def _front(self, name: str, layer: int) -> Float[np.ndarray, "t d"]:
        """ActAdd's vectors for the first tokens, as long in the mean as the difference of the class means."""
        _, n, alignment = name.split("_")
        pairs = directions.chosen_pairs(self.material[layer], int(n), alignment == "aligned")
        length = self.fitting.shortest()
        tokens = self.fitting.tokens(pairs.flatten().tolist(), layer, length)
        vectors = directions.front(tokens.reshape(*pairs.shape, length, -1))
        norm = np.sqrt((vectors**2).sum())
        if norm == 0:
            raise directions.Excluded("the pairs do not differ in their first tokens")
        return vectors * np.linalg.norm(directions.mass_mean(self.material[layer])) / norm

    def _flips(self, found: Outcome, sample: Sample, half: str) -> tuple[np.ndarray, np.ndarray]:
        """Per text: the answer is the counterfactual one [D, m]; the answers to the others changed [D, R, m]."""
        flip = (np.sign(found.log_odds[:, self.readout]) != sample.signs[self.readout]).astype(float)
        changed = (np.sign(found.log_odds) != np.sign(self.clean[half])).astype(float)
        changed[np.isnan(found.log_odds)] = np.nan
        changed[:, self.readout] = np.nan
        return flip, changed

    def _effect(self, found: Outcome, sample: Sample, half: str) -> Float[np.ndarray, "D m"]:
        """Movement of the log-odds to the counterfactual, as a share of the gap between True and False."""
        sign, clean = sample.signs[self.readout], self.clean[half][self.readout]
        return sign * (clean - found.log_odds[:, self.readout]) / (2 * np.abs(sign @ clean) / len(clean))

    def _read_flips(self, found: Outcome, sample: Sample, half: str) -> dict[str, Float[np.ndarray, "D m"]]:
        """Per text, for every feature that probes read: its own class is the counterfactual one; another's changed."""
        flips = {}
        for column, name in enumerate(sample.readers[self.readout].names if sample.readers else ()):
            before = sample.signs[self.readout] if name == self.target else np.sign(self.clean_read[half][column])
            flips[name] = (np.sign(found.read[:, column]) != before).astype(float)
        return flips

    def _choose(self) -> tuple[dict[tuple[str, str], Setting], dict[tuple[str, str, int], np.ndarray]]:
        """The setting of every direction at every position, and the flips of every dose tried, on the first half."""
        chosen, tried = {}, {}
        doses = sorted(float(dose) for dose in self.settings["coefficients"])
        for name, position in itertools.product(self.names, self.settings["positions"]):
            if position == FRONT and not name.startswith("actadd"):
                continue
            settings, flips, off, nll = [], [], [], []
            for layer in (layer for layer in self.layers if (name, layer) in self.made):
                try:
                    moves = self._moves(name, layer, doses, position)
                except directions.Excluded as reason:
                    progress.logger("steering").info("%s at layer %d, %s: %s", name, layer, position, reason)
                    continue
                found = self.choosing.outcome(self.readout, position, [layer], moves)
                flip, changed = self._flips(found, self.choosing, "choose")
                settings += [Setting(position, layer, dose) for dose in doses]
                flips.append(flip.mean(axis=1))
                # What is said says whether another feature changed; of those that are never said, a probe does.
                unsaid = [
                    values.mean(axis=1)
                    for other, values in self._read_flips(found, self.choosing, "choose").items()
                    if other not in self.design.readouts
                ]
                off.append(np.column_stack([_mean(changed, axis=2), *unsaid]))
                nll.append(_mean(found.delta_nll, axis=1))
                tried[name, position, layer] = flips[-1]
            if settings:
                best, _ = choose(np.concatenate(flips), np.concatenate(off), np.concatenate(nll))
                chosen[name, position] = settings[best]
        return chosen, tried

    def _ends(self, values: Float[np.ndarray, "k m"]) -> Iterator[dict[str, Any]]:
        interval = statistics.bootstrap(values.T, self.weights, self.confidence, self.units)
        for k in range(len(values)):
            yield {
                **{end: float(getattr(interval, end)[k]) for end in ("estimate", "lower", "upper")},
                "n_texts": int((~np.isnan(values[k])).sum()),
                "n_groups": self.units,
            }

    def _rows_of(
        self, found: Outcome, labels: Sequence[str], where: Mapping[str, Any], notes: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """All scores of D moves at one site."""
        here = {**self.site, **where}
        flip, changed = self._flips(found, self.reporting, "report")
        sign, clean = self.reporting.signs[self.readout], self.clean["report"][self.readout]
        scores: dict[str, tuple[float, np.ndarray]] = {
            "flip": (math.nan, flip),
            "log_odds": (0.0, sign * (clean - found.log_odds[:, self.readout])),
        }
        for r, other in enumerate(self.reporting.targets):
            if r != self.readout and not np.isnan(changed[:, r]).all():
                scores[f"flip_on_{other}"] = (0.0, changed[:, r])
        if len(scores) > 2:
            scores["off_target"] = (0.0, _mean(changed, axis=1))
        if self.reporting.neutral:
            yield from self._of_neutral(found, labels, here, notes)
        elif not np.isnan(found.delta_nll).all():
            scores |= {"delta_nll": (0.0, found.delta_nll), "divergence": (0.0, found.divergence)}
        for score, (level, values) in scores.items():
            for label, note, ends in zip(labels, notes, self._ends(values), strict=True):
                yield {**here, "probe": label, "score": score, "level": level, **ends, "note": note}
        yield from self._of_probes(found, labels, here, notes)

    def _of_probes(
        self, found: Outcome, labels: Sequence[str], here: Mapping[str, Any], notes: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """What held-out probes read of the reported texts."""
        flips = self._read_flips(found, self.reporting, "report")
        if not flips:
            return
        reader, sign = self.reporting.readers[self.readout], self.reporting.signs[self.readout]
        right = {name: f"held-out probe, right on {reader.accuracy[name]:.3f} undisturbed" for name in flips}
        scores: dict[str, tuple[float, np.ndarray, str]] = {}
        if self.target in flips:
            moved = sign * (self.clean_read["report"] - found.read)[:, reader.names.index(self.target)]
            scores["probe_flip"] = (math.nan, flips[self.target], right[self.target])
            scores["probe_logit"] = (0.0, moved, right[self.target])
        others = [name for name in flips if name != self.target]
        for name in others:
            scores[f"probe_flip_on_{name}"] = (0.0, flips[name], right[name])
        if others:
            mean = np.mean([flips[name] for name in others], axis=0)
            scores["probe_off_target"] = (0.0, mean, f"held-out probes of {', '.join(others)}")
        for score, (level, values, by) in scores.items():
            for label, note, ends in zip(labels, notes, self._ends(values), strict=True):
                yield {**here, "probe": label, "score": score, "level": level, **ends, "note": f"{note}; {by}"}

    def _of_neutral(
        self, found: Outcome, labels: Sequence[str], here: Mapping[str, Any], notes: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        """Neutral strings are independent of the design's units: a t-interval over strings."""
        for score, values in (("delta_nll", found.delta_nll), ("divergence", found.divergence)):
            interval = statistics.t_interval(values.T, self.confidence) if values.shape[1] > 1 else None
            for k, (label, note) in enumerate(zip(labels, notes, strict=True)):
                ends = {"estimate": float(values[k].mean())}
                if interval is not None:
                    ends |= {"lower": float(interval.lower[k]), "upper": float(interval.upper[k])}
                count = {"n_texts": values.shape[1], "n_groups": values.shape[1]}
                yield {**here, "probe": label, "score": score, "level": 0.0, **ends, **count, "note": note}

    def _detection(self) -> Iterator[dict[str, Any]]:
        """AUROC of every direction, and its effect at coefficient 1, at the feature's own token of every layer."""
        for layer in self.layers:
            names = [name for name in dict.fromkeys(n for n, _ in self.made) if (name, layer) in self.made]
            if not names:
                continue
            moves = [self._moves(name, layer, [1.0], ANSWER)[0] for name in names]
            found = self.reporting.outcome(self.readout, ANSWER, [layer], moves)
            effect = self._effect(found, self.reporting, "report")
            where = {**self.site, "position": ANSWER, "layer": layer}
            for name, ends in zip(names, self._ends(effect), strict=True):
                detected = auroc(self.projected[name, layer], self.held_out_labels)
                row = {**where, "probe": f"{name}:detect"}
                yield {**row, "score": "effect", "level": 0.0, **ends}
                count = {"n_texts": len(self.held_out_labels), "n_groups": self.units}
                yield {**row, "score": "auroc", "level": 0.5, "estimate": detected, **count}
                others = reads_others(self.projected[name, layer], self.held_out_features, self.target)
                yield {**row, "score": "reads_others", "level": 0.0, "estimate": others, **count}

    def _doses(self, chosen: Mapping[tuple[str, str], Setting]) -> Iterator[dict[str, Any]]:
        """Dose response of every direction at its own layer for each position, and the setting that was chosen."""
        doses = sorted(float(dose) for dose in self.settings["coefficients"])
        accuracy = float((np.sign(self.clean["report"][self.readout]) == self.reporting.signs[self.readout]).mean())
        undisturbed = f"undisturbed, {1 - accuracy:.3f} say the counterfactual"
        for (name, _), setting in chosen.items():
            moves = self._moves(name, setting.layer, doses, setting.position)
            found = self.reporting.outcome(self.readout, setting.position, [setting.layer], moves)
            where = {"position": setting.position, "layer": setting.layer}
            labels = [f"{name}:{dose:g}" for dose in doses]
            rows = list(self._rows_of(found, labels, where, [undisturbed] * len(doses)))
            yield from rows
            picked = [row for row in rows if row["probe"] == f"{name}:{setting.coefficient:g}"]
            for row in picked:
                yield {**row, "probe": f"{name}:chosen", "note": f"coefficient {setting.coefficient:g}; {undisturbed}"}
            flips = [row["estimate"] for row in rows if row["score"] == "flip"]
            if max(flips) < REACHED:
                site = {**self.site, **where}
                reason = f"no coefficient up to {doses[-1]:g} flips {REACHED:.0%} (at most {max(flips):.3f})"
                yield _excluded(site, self.target, f"{name}:reach", reason)
            measured = {row["score"] for row in picked}
            for other in self.reporting.targets:
                if other != self.target and f"flip_on_{other}" not in measured:
                    site = {**self.site, **where}
                    reason = "its answer comes before the first steered token"
                    yield _excluded(site, self.target, f"{name}:chosen", reason, f"flip_on_{other}")
            if "delta_nll" not in measured:
                reason = "no neutral token after the first steered one"
                yield _excluded({**self.site, **where}, self.target, f"{name}:chosen", reason, "delta_nll")

    def _compared(
        self, common: Setting, tried: Mapping[tuple[str, str, int], Float[np.ndarray, " doses"]]
    ) -> Iterator[dict[str, Any]]:
        """All directions at one site: at equal norm, and at the smallest dose that flips enough; paired differences."""
        where = {"position": common.position, "layer": common.layer}
        doses = sorted(float(dose) for dose in self.settings["coefficients"])
        disturbed: dict[tuple[str, str], np.ndarray] = {}
        for name in self.names:
            if (name, common.layer) not in self.made or (name, common.position, common.layer) not in tried:
                continue
            enough = np.flatnonzero(tried[name, common.position, common.layer] >= REACHED)
            settled = {"equal": 1.0}
            if len(enough):
                settled["matched"] = doses[enough[0]]
            else:
                reason = f"no coefficient up to {doses[-1]:g} flips {REACHED:.0%} of the first half here"
                yield _excluded({**self.site, **where}, self.target, f"{name}:matched", reason)
            moves = self._moves(name, common.layer, list(settled.values()), common.position)
            found = self.reporting.outcome(self.readout, common.position, [common.layer], moves)
            labels = [f"{name}:{kind}" for kind in settled]
            notes = [f"coefficient {dose:g}" for dose in settled.values()]
            yield from self._rows_of(found, labels, where, notes)
            _, changed = self._flips(found, self.reporting, "report")
            for kind, values in zip(settled, _mean(changed, axis=1), strict=True):
                disturbed[name, kind] = values
        for one, other in COMPARED:
            for kind in ("equal", "matched"):
                pair = [disturbed.get((name, kind)) for name in (one, other)]
                if any(values is None or np.isnan(values).all() for values in pair):
                    continue
                (ends,) = self._ends((pair[0] - pair[1])[None])
                row = {**self.site, **where, "probe": f"{one}-{other}:{kind}", "score": "off_target", "level": 0.0}
                yield {**row, **ends, "note": "paired difference of off-target flips"}

    def _at_equal_divergence(self) -> Iterator[dict[str, Any]]:
        """The averaged difference at every token less single prompt pairs at the front; a dictionary's row less directions
        that mean nothing."""
        here = {name: [layer for layer in self.layers if (name, layer) in self.made] for name in self.names}
        if {AVERAGED, PAIRED} <= set(here):
            yield from self._at_equal_price(
                Way(AVERAGED, ALL, "none", lambda layer: [self.made[AVERAGED, layer]], here[AVERAGED], 1),
                Way(PAIRED, FRONT, "none", self._fronts, here[PAIRED], FEWEST_SETS),
            )
        if LEARNED in here:
            yield from self._at_equal_price(
                Way(LEARNED, GENERATED, "none", lambda layer: [self.made[LEARNED, layer]], here[LEARNED], 1),
                Way(
                    *("null", GENERATED, NULLS[coordinate_swaps.WITHIN_CELL]),
                    lambda layer: list(self._drawn(layer).nulls[coordinate_swaps.WITHIN_CELL]),
                    *(here[LEARNED], FEWEST_SETS),
                ),
            )

    def _at_equal_price(self, one: Way, other: Way) -> Iterator[dict[str, Any]]:
        """One move less the mean of several, equally disturbing."""
        found = {}
        for way in (one, other):
            try:
                found[way.name] = self._equally_disturbing(way)
            except directions.Excluded as reason:
                site = {**self.site, "position": way.position, "control": way.control}
                yield _excluded(site, self.target, f"{way.name}:divergence", str(reason), "effect")
                return
            where, doses, outcome = found[way.name]
            spent = _mean(outcome.divergence, axis=1)
            for k, ends in enumerate(self._ends(self._effect(outcome, self.reporting, "report"))):
                row = {**self.site, **where, "probe": f"{way.name}:divergence", "seed": k, "level": 0.0}
                note = f"coefficient {doses[k]:.3g}"
                yield {**row, "score": "effect", **ends, "note": note}
                count = {"n_texts": ends["n_texts"], "n_groups": self.units}
                yield {**row, "score": "divergence", "estimate": float(spent[k]), **count, "note": note}
        where, _, outcome = found[one.name]
        (own,) = self._effect(outcome, self.reporting, "report")
        others = self._effect(found[other.name][2], self.reporting, "report")
        rng = np.random.default_rng([self.settings["seed"], 3])
        interval = matched_divergence.difference(own, others, self.weights, self.confidence, self.units, rng)
        yield {
            **{**self.site, **where, "control": other.control, "score": "effect", "level": 0.0},
            "probe": f"{one.name}-{other.name}:divergence",
            **{end: float(getattr(interval, end)[0]) for end in ("estimate", "lower", "upper")},
            "n_texts": len(own),
            "n_groups": min(self.units, len(others)),
            "note": f"less the mean of {len(others)}, at layer {found[other.name][0]['layer']}",
        }

    def _equally_disturbing(self, way: Way) -> tuple[dict[str, Any], np.ndarray, Outcome]:
        """Site, doses, and outcome on the second half; layer and doses from the first. Raises Excluded where too few of
        the moves disturb as much."""
        best, most = None, 0
        for layer in way.layers:
            vectors = way.vectors(layer)
            outcome = partial(self._moved_along, self.choosing, way.position, layer)
            doses = matched_divergence.doses_at(
                lambda tried, outcome=outcome, vectors=vectors: _mean(outcome(vectors, tried).divergence, axis=1),
                EQUAL_DIVERGENCE,
                len(vectors),
            )
            reached = np.flatnonzero(~np.isnan(doses))
            most = max(most, len(reached))
            if len(reached) < way.fewest:
                continue
            kept = [vectors[k] for k in reached]
            effect = self._effect(outcome(kept, doses[reached]), self.choosing, "choose").mean()
            if best is None or effect > best[0]:
                best = effect, layer, kept, doses[reached]
        if best is None:
            raise directions.Excluded(
                f"at most {most} disturb neutral tokens by {EQUAL_DIVERGENCE} bits at any coefficient"
            )
        _, layer, kept, doses = best
        where = {"position": way.position, "layer": layer, "control": way.control}
        return where, doses, self._moved_along(self.reporting, way.position, layer, kept, doses)

    def _moved_along(
        self,
        sample: Sample,
        position: str,
        layer: int,
        vectors: Sequence[np.ndarray],
        doses: Float[np.ndarray, " k"],
    ) -> Outcome:
        moves = [Move(vector, dose) for vector, dose in zip(vectors, doses, strict=True)]
        return sample.outcome(self.readout, position, [layer], moves)

    def _fronts(self, layer: int) -> list[Float[np.ndarray, "t d"]]:
        """Differences of single aligned prompt pairs at each of their first tokens, as long in all as μ₊ − μ₋."""
        pairs = directions.chosen_pairs(self.material[layer], PAIR_SETS, True)
        length = self.fitting.shortest()
        tokens = self.fitting.tokens(pairs.flatten().tolist(), layer, length).reshape(*pairs.shape, length, -1)
        vectors = [directions.front(pair[None]) for pair in tokens]
        norm = np.linalg.norm(directions.mass_mean(self.material[layer]))
        return [vector * (norm / np.linalg.norm(vector)) for vector in vectors if np.linalg.norm(vector) > 0]

    def _drawn(self, layer: int) -> coordinate_swaps.Directions:
        """Null directions of one layer, from the first half."""
        n, rng = self.settings["nulls"], np.random.default_rng([self.settings["seed"], layer, self.readout])
        try:
            labellings = label_controls.dichotomy_labels(self.design, self.target, n, rng)[self.fitting.chosen]
        except UserError as reason:
            progress.logger("steering").warning("%s: no dichotomy directions: %s", self.target, reason)
            labellings = np.zeros((len(self.fitting.chosen), 0), dtype=bool)
        x = np.zeros((len(self.design.texts), self.material[layer].x.shape[1]))
        x[self.fitting.chosen] = self.material[layer].x
        spread = np.zeros((len(x), labellings.shape[1]), dtype=bool)
        spread[self.fitting.chosen] = labellings
        return coordinate_swaps.directions(x, self.design, self.fitting.chosen, self.target, spread, n, rng, n)

    def _nulls(self, common: Setting) -> Iterator[dict[str, Any]]:
        """Directions that mean something else, at equal norm; their bands; and who lies outside."""
        drawn = self._drawn(common.layer)
        where = {"position": common.position, "layer": common.layer}
        sign, clean = self.reporting.signs[self.readout], self.clean["report"][self.readout]

        def effect(moves: Sequence[Move]) -> Float[np.ndarray, "k m"]:
            found = self.reporting.outcome(self.readout, common.position, [common.layer], moves)
            return sign * (clean - found.log_odds[:, self.readout])

        names = [name for name in self.names if (name, common.layer) in self.made]
        own = effect(
            [self._moves(name, common.layer, [1.0], common.position)[0] for name in names]
            if common.position != FRONT
            else []
        )
        for kind, vectors in {**drawn.nulls, **drawn.beside}.items():
            if kind not in NULLS:
                continue
            values = effect([Move(vector, 1.0) for vector in vectors])
            here = {**self.site, **where, "control": NULLS[kind], "score": "log_odds", "level": 0.0}
            for k, ends in enumerate(self._ends(values)):
                yield {**here, "probe": "null:equal", "seed": k, **ends}
            if len(values) < 39:
                reason = f"{len(values)} null directions of this kind; a band needs 39"
                yield _excluded(
                    {**self.site, **where, "control": NULLS[kind]}, self.target, "band:equal", reason, "log_odds"
                )
                continue
            lower, upper = band(values.mean(axis=1), self.confidence)
            outside = [name for name, moved in zip(names, own.mean(axis=1), strict=True) if not lower <= moved <= upper]
            count = {"n_texts": values.shape[1], "n_groups": len(values)}
            middle = float(np.median(values.mean(axis=1)))
            note = f"outside the band: {', '.join(outside) or 'none'}"
            yield {
                **here,
                "probe": "band:equal",
                "estimate": middle,
                "lower": lower,
                "upper": upper,
                **count,
                "note": note,
            }

    def _scaled(self, common: Setting) -> Iterator[dict[str, Any]]:
        """Geometry of Truth's normalised indirect effects of the logistic probe and of mass-mean."""
        material = self.material[common.layer]
        gap = directions.mass_mean(material)
        moves = []
        for name in ("logistic", "mass_mean"):
            try:
                vector = directions.make(name, material)
            except directions.Excluded as reason:
                site = {**self.site, "position": ANSWER, "layer": common.layer}
                yield _excluded(site, self.target, f"{name}:got", str(reason), "nie_false_true")
                return
            unit = vector / np.linalg.norm(vector)
            moves.append(Move(unit * (gap @ unit), 1.0))
        layers = [layer for layer in self.layers if layer <= common.layer]
        found = self.reporting.outcome(self.readout, ANSWER, layers, moves).probability[:, self.readout]
        still = [Move(0 * gap, 0.0)]
        clean = self.reporting.outcome(self.readout, ANSWER, layers[:1], still).probability[0, self.readout]
        true = self.reporting.signs[self.readout] > 0
        if true.all() or not true.any():
            site = {**self.site, "position": ANSWER, "layer": common.layer}
            yield _excluded(site, self.target, "mass_mean:got", "the sample has one class only", "nie_false_true")
            return
        whole = clean[true].mean() - clean[~true].mean()
        where = {**self.site, "position": ANSWER, "layer": common.layer}
        for score, side, towards in (("nie_false_true", ~true, 1.0), ("nie_true_false", true, -1.0)):
            values = np.where(side, towards * (found - clean) / whole, np.nan)
            values = np.concatenate([values, values[1:] - values[:1]])
            labels = ("logistic:got", "mass_mean:got", "mass_mean-logistic:got")
            for label, ends in zip(labels, self._ends(values), strict=True):
                note = f"layers {layers[0]} to {layers[-1]}; gap of the probabilities {whole:.3f}"
                yield {**where, "probe": label, "score": score, "level": 0.0, **ends, "note": note}

    def _read(self, common: Setting) -> Iterator[dict[str, Any]]:
        """Share of each direction in what the rest of the network reads, beside random directions."""
        top = self.settings["jacobian"]
        if not top:
            return
        jacobian = self.fitting.jacobian(self.readout, common.layer, JACOBIAN_TEXTS)
        basis = np.linalg.svd(jacobian)[2][:top]
        rng = np.random.default_rng([self.settings["seed"], 2])
        where = {**self.site, "position": ANSWER, "layer": common.layer, "score": "jacobian_share"}
        where |= {"level": len(basis) / jacobian.shape[1], "n_texts": JACOBIAN_TEXTS, "n_groups": 1}
        for name in self.names:
            if (name, common.layer) in self.made:
                yield {**where, "probe": f"{name}:read", "estimate": _share(self.made[name, common.layer], basis)}
        draws = [_share(vector, basis) for vector in rng.standard_normal((1000, jacobian.shape[1]))]
        lower, upper = (float(end) for end in np.percentile(draws, [2.5, 97.5]))
        ends = {"estimate": float(np.mean(draws)), "lower": lower, "upper": upper}
        yield {**where, "probe": "null:read", "control": "isotropic", **ends}

    def _texts(self, chosen: Mapping[tuple[str, str], Setting]) -> Iterator[dict[str, Any]]:
        """What is generated before and after, and how much it repeats itself."""
        whole = [key for key in chosen if key[1] != FRONT and key[0] != directions.LEACE]
        if not whole:
            return
        name, position = min(whole, key=lambda key: (key[0] != "diff_mean", key[1] != ANSWER))
        setting = chosen[name, position]
        vector = torch.as_tensor(self.made[name, setting.layer] * setting.coefficient, dtype=torch.float32)
        model, tokenizer = self.fitting.model, self.fitting.tokenizer
        done = 0
        for group in self.reporting.groups:
            if self.readout not in dict(group.asked):
                continue
            for row in range(min(len(group.ids), self.settings["gallery"] - done)):
                site, text = group.sites[self.readout], int(group.texts[row])
                ids = group.ids[row : row + 1, : dict(group.asked)[self.readout] + 1]
                places = _places(group, site, setting.position, [])
                sign = float(self.reporting.signs[self.readout][text])
                n = min(self.settings["generated"], model.config.max_position_embeddings - ids.shape[1])
                before = interventions.generate(model, ids, n)[0].tolist()
                edits = {setting.layer: interventions.add(-sign * vector.to(model.device))}
                after = interventions.generate_checked(model, ids, n, edits, places)[0].tolist()
                words = [tokenizer.decode(tokens) for tokens in (ids[0].tolist(), before, after)]
                here = {**self.site, "position": setting.position, "layer": setting.layer, "seed": done}
                here |= {"score": "repetition", "level": math.nan, "n_texts": 1, "n_groups": 1}
                yield {
                    **here,
                    "probe": "none:generated",
                    "estimate": repetition(before),
                    "note": f"{words[0]} | {words[1]}",
                }
                yield {
                    **here,
                    "probe": f"{name}:generated",
                    "estimate": repetition(after),
                    "note": f"{words[0]} | {words[2]}",
                }
                done += 1


def layers_of(requested: str | Sequence[int], n_blocks: int) -> list[int]:
    """`inner` is every layer between the embedding and the last block's output; otherwise the layers listed."""
    if requested == "inner":
        return list(range(1, n_blocks)) or [n_blocks]
    for layer in requested:
        if not 0 <= layer <= n_blocks:
            raise UserError(f"steering.layers: there is no layer {layer}; there are 0 to {n_blocks}")
    return sorted(requested)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values, 0).sum(axis=axis) / np.where(known.any(axis=axis), known.sum(axis=axis), np.nan)


def _share(vector: Float[np.ndarray, " d"], basis: Float[np.ndarray, "k d"]) -> float:
    return float(((basis @ vector) ** 2).sum() / (vector @ vector))
