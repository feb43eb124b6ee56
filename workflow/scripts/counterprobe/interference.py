"""Is an XOR there because what computes A and what computes B get into each other's way? Hoagy's hypothesis as numbers.

δ = μ₁₁ − μ₁₀ − μ₀₁ + μ₀₀ is the interaction of A and B at a site, d_A and d_B their effects (the Walsh contrasts of
`statistics`). The hypothesis (comment on Marks 2024, https://www.lesswrong.com/posts/hjJXCn9GsskysDceS) has three parts,
and each gets a number that could contradict it.

*Shared components* (`overlap`). The stream is a sum over components (see `components`), so A's effect has an exact
attribution profile over heads and neurons,

    p_A[c] = mean over items of (output of c where A) − (output of c where not A), along the unit vector of d_A.

Do pairs whose profiles overlap (cosine of |p_A| and |p_B|, one half of the couples of items) interact more (‖δ‖² /
(‖d_A‖‖d_B‖), debiased, from the other half)? Spearman over pairs of features × layers; both ways of using the halves are
averaged. Null: identities of the components shuffled within each block and kind, for every feature by itself.

*Which part of the model* (`freezing`). "They would compete in the softmax", or "more saturated"? Run every text with its
attention patterns, its MLP inputs, or both taken from the same text with b at a reference value (b = 0 and b = 1 in turn;
half of the texts are then as they were), so that this part of the model cannot respond to b. v(S) = share of ‖δ‖² that
is gone; the share of each part is its Shapley value (mean of what it removes first and what it removes last). What is
left with both frozen is made by values that pass through a normalisation. Freezing a part also removes what it carries of
b itself: the share of ‖d_b‖² that is gone stands beside, and the claim is about their difference. Note: 100% of both
means "this part carries b", not "this part interferes".

*Neurons* (`neurons`). For each neuron the scalar effects d_a, d_b (one half of the couples) and interaction δ (the other):
partial rank correlation of |d_a d_b| with |δ| given the within-cell standard deviation, and the share of neurons whose
interaction is sub-additive, δ · sign(d_a d_b) < 0, weighted by ‖W_out row‖ √|d_a d_b|. A convex activation with an
additive input can only be SUPER-additive (ReLU, and GELU outside its tails): saturation in the literal sense has to
come from what the neuron reads.

Intervals: bootstrap over couples with the pairs of one couple left out (overlap: ranks of few points are no smooth
function), delete-one jackknife over couples elsewhere.

Pitfalls: overlap of profiles is not overlap of what is computed. Pairs × layers of one model are few points and not
independent: the interval says how well THIS model was measured. Counterfactual texts must have equally many tokens:
pairs in which neither factor can be flipped so have no shares.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import special
from scipy.stats import rankdata

from counterprobe import (
    attribution,
    checkpoints,
    components,
    designs,
    extraction,
    language_model,
    progress,
    statistics,
    tables,
    tokenization,
    weight_controls,
)
from counterprobe.attribution import Contrasts
from counterprobe.components import Block, Readings, Sequences
from counterprobe.designs import Design
from counterprobe.revisions import step_of
from counterprobe.statistics import Interval

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# An interaction below this share of ‖d_A‖‖d_B‖ (squared lengths) is rounding: a share of it means nothing.
NEGLIGIBLE = 1e-6
# A neuron whose standard deviation over texts is below this share of its block's activations is constant but for rounding.
CONSTANT = 1e-5
# Couples below which no interval over couples is worth the name.
FEWEST_COUPLES = 6
# Floats of one block of permuted profiles.
BLOCK_FLOATS = 1 << 23
PARTS = ("attention", "mlp")
UNDEFINED = "nothing to take a share of: the interval of its squared length contains 0"


@dataclass(frozen=True)
class Overlap:
    """One entry a point, (layer, pair): layers 1 … L × pairs, less those in which a feature has no effect at the layer.

    spearman has one entry, with its permutation p.
    """

    points: tuple[tuple[int, tuple[str, str]], ...]
    overlap: Interval
    ratio: Interval
    spearman: Interval
    null: Float[np.ndarray, " draws"]
    p: float


@dataclass(frozen=True)
class Shares:
    """Of one pair, by layer 0 … L. Keys: attention, mlp, both; shapley_attention, shapley_mlp.

    interaction and effect: share of ‖δ‖² and of ‖d_b‖² removed; difference: the former minus the latter.
    """

    interaction: dict[str, Interval]
    effect: dict[str, Interval]
    difference: dict[str, Interval]
    n_units: int


def measure(
    checkpoint: str | Path,
    design: Design,
    weights: str,
    spec: Mapping[str, Any],
    cell: Mapping[str, str],
    *,
    device: str,
) -> pd.DataFrame:
    """Overlap, shares and neurons of one model under trained or randomised weights, at the primary position.

    spec: `interference`, `statistics`, `activations` (primary_position, primary_bos, token_budget), `design.unreadable`.
    A rung is read with its embeddings kept, for `interference.seeds` seeds.
    """
    source = checkpoints.open_checkpoint(checkpoint)
    tokenizer = tokenization.load_tokenizer(source)
    settings = spec["interference"]
    design = extraction.readable(design, tokenizer, spec["design"]["unreadable"])
    design = designs.thinned(design, settings["items"], np.random.default_rng(settings["seed"]))
    reading = spec["activations"]
    rows: list[dict[str, Any]] = []
    for seed in range(settings["seeds"] if weights != extraction.TRAINED else 1):
        model = language_model.load(source, device="cpu")
        if weights != extraction.TRAINED:
            weight_controls.apply(model, weights, embeddings="kept", seed=seed)
        model = model.to(device)
        texts = components.sequences(
            model,
            tokenizer,
            design,
            reading["primary_position"],
            bos=reading["primary_bos"],
            token_budget=reading["token_budget"],
        )
        site = {
            **tables.NOT_APPLICABLE,
            **cell,
            "step": step_of(cell["revision"]),
            "seed": seed,
            "position": reading["primary_position"],
            "bos": reading["primary_bos"],
            "protocol": "items",
            "n_texts": len(design.texts),
        }
        rows += model_rows(model, design, texts, settings, spec["statistics"], site)
    return tables.frame(rows)


def model_rows(
    model: "PreTrainedModel",
    design: Design,
    texts: Sequences,
    settings: Mapping[str, Any],
    statistic: Mapping[str, Any],
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Every row of one set of weights."""
    blocks = components.blocks_of(model)
    readings = components.read(model, blocks, texts)
    features = attribution.visible(design, texts)
    confidence = statistic["confidence"]
    measured = attribution.contrasts(readings, design, texts, features)
    site = {**site, "n_groups": len(measured.sizes)}
    if len(measured.sizes) < FEWEST_COUPLES or len(features) < 2:
        progress.logger("interference").warning(
            "%s: %d features can be read at %s, %d couples of items; nothing is measured below 2 and %d",
            design.name,
            len(features),
            site["position"],
            len(measured.sizes),
            FEWEST_COUPLES,
        )
        return
    rng = np.random.default_rng([settings["seed"], 1])
    half = halves(measured.strata, rng)
    shared = overlap(measured, blocks, half, settings["permutations"], statistic["resamples"], rng, confidence)
    yield from overlap_rows(shared, site)
    deviations = within_cells(readings.neurons, design, texts)
    for pair in measured.pairs:
        for layer, scores in neuron_scores(measured, blocks, deviations, pair, half, confidence).items():
            for score, (level, interval) in scores.items():
                row = {**site, "layer": layer, "target": "^".join(pair), "probe": "neurons", "score": score}
                yield {**row, "level": level, **_ends(interval)}
    runs: dict[str, tuple[dict[frozenset[str], list[np.ndarray]], Bool[np.ndarray, " texts"]]] = {}
    for pair in measured.pairs:
        for factor in pair:
            if factor not in runs:
                runs[factor] = freeze(model, blocks, design, texts, factor)
        yield from share_rows(pair, runs, readings, design, texts, confidence, site)


def halves(strata: Int[np.ndarray, " g"], rng: np.random.Generator) -> Bool[np.ndarray, " g"]:
    """A random half of the units, evenly from every stratum."""
    order = rng.permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    half = np.zeros(len(strata), dtype=bool)
    half[order[::2]] = True
    return half


# --- shared components (C02) -------------------------------------------------------------------------------


def overlap(
    measured: Contrasts,
    blocks: Sequence[Block],
    half: Bool[np.ndarray, " g"],
    permutations: int,
    resamples: int,
    rng: np.random.Generator,
    confidence: float = 0.95,
) -> Overlap:
    """Does the overlap of two features' attribution profiles predict their interaction? Points: pairs × layers 1 … L."""
    g = len(half)
    weights = np.ones((1 + resamples, g))
    for side in (half, ~half):
        n = int(side.sum())
        # One draw fewer than there are units, as in `statistics.two_way_weights`.
        weights[1:, side] = rng.multinomial(n - 1, np.full(n, 1 / n), size=resamples)
    layers = range(1, len(blocks) + 1)
    there = {
        (layer, name) for layer in layers for name in measured.features if attribution.has_effect(measured, name, layer)
    }
    points = tuple(
        (layer, pair)
        for layer, pair in itertools.product(layers, measured.pairs)
        if {(layer, name) for name in pair} <= there
    )
    if not points:
        none = Interval(*np.empty((3, 0)))
        return Overlap((), none, none, Interval(*np.full((3, 1), np.nan)), np.empty(0), float("nan"))
    kinds = [block.count(kind) for block in blocks for kind in components.KINDS]
    orders = {feature: _Shuffles(kinds, permutations, rng) for feature in measured.features}
    cosines, ratios, nulls = [], [], []
    for side in (half, ~half):
        profiles = {
            at: np.abs(attribution.profile(measured, blocks, at[1], at[0], weights * side)) for at in sorted(there)
        }
        cosines.append(np.stack([_cosine(profiles[at, a], profiles[at, b]) for at, (a, b) in points], axis=1))
        ratios.append(np.stack([ratio(measured, pair, at, weights * ~side) for at, pair in points], axis=1))
        nulls.append(_permuted({at: values[0] for at, values in profiles.items()}, points, orders, permutations))
    spearman = np.mean([_spearman(x, y) for x, y in zip(cosines, ratios, strict=True)], axis=0)
    null = np.mean([_spearman(x, y[:1]) for x, y in zip(nulls, ratios, strict=True)], axis=0)
    units = int(min(half.sum(), (~half).sum()))
    reached = int((null >= spearman[0] - 1e-12).sum())
    return Overlap(
        points=points,
        overlap=_percentile(np.mean(cosines, axis=0), confidence, units),
        ratio=_percentile(np.mean(ratios, axis=0), confidence, units),
        spearman=_percentile(spearman[:, None], confidence, units),
        null=null,
        p=(1 + reached) / (1 + permutations) if np.isfinite(spearman[0]) else float("nan"),
    )


def ratio(
    measured: Contrasts, pair: tuple[str, str], layer: int, weights: Float[np.ndarray, "R g"]
) -> Float[np.ndarray, " R"]:
    """‖δ‖² / (‖d_a‖‖d_b‖), each squared length by its U-statistic over units; NaN where an effect is not above 0."""
    at = measured.residuals[layer]
    interaction, a, b = (attribution.squared(at[name], measured.sizes, weights) for name in ("^".join(pair), *pair))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((a > 0) & (b > 0), interaction / np.sqrt(a * b), np.nan)


def overlap_rows(shared: Overlap, site: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The two numbers of every point, then the correlation over all of them (target "pairs", the whole model)."""
    for place, (layer, pair) in enumerate(shared.points):
        row = {**site, "layer": layer, "target": "^".join(pair), "probe": "attribution"}
        yield {**row, "score": "profile_overlap", "level": 0.0, **_ends(shared.overlap, place)}
        yield {**row, "score": "interaction_ratio", "level": 0.0, **_ends(shared.ratio, place)}
    row = {**site, "target": "pairs", "probe": "attribution"}
    known = shared.null[np.isfinite(shared.null)]
    level = float(known.mean()) if len(known) else float("nan")
    note = f"{len(shared.points)} points (pairs x layers); the level is the mean over permuted profiles"
    if not np.isfinite(shared.spearman.estimate[0]):
        note = f"no rank correlation over {len(shared.points)} points (pairs x layers in which both features have an effect)"
    yield {**row, "score": "spearman", "level": level, "note": note, **_ends(shared.spearman)}
    yield {**row, "score": "p_permuted", "estimate": shared.p}


class _Shuffles:
    """Random permutations of components within groups; draws come in blocks, equal for every layer."""

    def __init__(self, sizes: Sequence[int], draws: int, rng: np.random.Generator) -> None:
        self.groups = np.repeat(np.arange(len(sizes)), sizes)
        self.seeds = rng.integers(2**63, size=-(-draws // self.block))
        self.draws = draws

    @property
    def block(self) -> int:
        return max(1, BLOCK_FLOATS // len(self.groups))

    def __iter__(self) -> Iterator[Int[np.ndarray, "draws C"]]:
        for index, seed in enumerate(self.seeds):
            n = min(self.block, self.draws - index * self.block)
            keys = np.random.default_rng(seed).random((n, len(self.groups)), dtype=np.float32)
            # Group number plus a fraction below one: sorting shuffles within groups and keeps them in place.
            yield np.argsort(self.groups + keys.astype(np.float64), axis=1)


def _permuted(
    observed: Mapping[tuple[int, str], Float[np.ndarray, " _"]],
    points: Sequence[tuple[int, tuple[str, str]]],
    orders: Mapping[str, _Shuffles],
    draws: int,
) -> Float[np.ndarray, "draws points"]:
    """Overlaps of profiles whose components were shuffled, for every feature by itself."""
    blocks = []
    for shuffled in zip(*orders.values(), strict=True):
        order = dict(zip(orders, shuffled, strict=True))
        # Earlier layers have the first of the components, which groups keep among themselves.
        drawn = {at: values[order[at[1]][:, : len(values)]] for at, values in observed.items()}
        blocks.append(np.stack([_cosine(drawn[at, a], drawn[at, b]) for at, (a, b) in points], axis=1))
    return np.concatenate(blocks)[:draws]


def _cosine(x: Float[np.ndarray, "R C"], y: Float[np.ndarray, "R C"]) -> Float[np.ndarray, " R"]:
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return (x * y).sum(axis=1) / np.maximum(lengths, np.finfo(float).tiny)


def _spearman(x: Float[np.ndarray, "#R points"], y: Float[np.ndarray, "#R points"]) -> Float[np.ndarray, " _"]:
    """Rank correlation of every row; NaN where there are fewer than three points, or a NaN among them."""
    if x.shape[1] < 3:
        return np.full(max(len(x), len(y)), np.nan)
    known = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    found = _correlation(rankdata(np.nan_to_num(x), axis=1), rankdata(np.nan_to_num(y), axis=1))
    return np.where(known, found, np.nan)


def _correlation(x: Float[np.ndarray, "#R n"], y: Float[np.ndarray, "#R n"]) -> Float[np.ndarray, " _"]:
    x, y = x - x.mean(axis=-1, keepdims=True), y - y.mean(axis=-1, keepdims=True)
    spread = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, (x * y).sum(axis=-1) / spread, np.nan)


def _percentile(draws: Float[np.ndarray, "R points"], confidence: float, units: int) -> Interval:
    """The first row is the estimate, the others are resamples; ends as wide as Student's t for so few units."""
    tail = float(special.ndtr(special.stdtrit(max(units - 1, 1), (1 - confidence) / 2)))
    resampled = draws[1:]
    defined = np.isfinite(draws[0]) & (np.isfinite(resampled).mean(axis=0) > 0.5)
    ends = np.full((2, draws.shape[1]), np.nan)
    if defined.any():
        ends[:, defined] = np.nanquantile(resampled[:, defined], (tail, 1 - tail), axis=0)
    return Interval(draws[0], ends[0], ends[1])


# --- which part of the model (C03) -------------------------------------------------------------------------


def counterfactuals(design: Design, factor: str) -> Int[np.ndarray, " texts"]:
    """For each text the one of its item that differs in `factor` only; −1 where there is none.

    Several texts of one cell are matched in their order.
    """
    cells = designs.cells(design)
    bit = 1 << list(design.factors).index(factor)
    seen: dict[tuple[int, int], int] = {}
    key_of, index_of = [], {}
    for text, (item, cell) in enumerate(zip(design.items.tolist(), cells.tolist(), strict=True)):
        turn = seen.get((item, cell), 0)
        seen[item, cell] = turn + 1
        key_of.append((item, cell, turn))
        index_of[item, cell, turn] = text
    return np.array([index_of.get((item, cell ^ bit, turn), -1) for item, cell, turn in key_of])


def freeze(
    model: "PreTrainedModel", blocks: Sequence[Block], design: Design, texts: Sequences, factor: str
) -> tuple[dict[frozenset[str], list[Float[np.ndarray, "texts d"]]], Bool[np.ndarray, " texts"]]:
    """Residuals of every text with parts frozen to the text that differs in `factor` only, and which texts have one.

    A text counts where every text of its couple has a counterfactual of as many tokens. Values of the others are those
    of the text itself.
    """
    partner = counterfactuals(design, factor)
    length = np.concatenate([np.full(len(ids), ids.shape[1]) for ids in texts.batches])
    of_partner = texts.of_text[partner]
    fits = (partner >= 0) & (length[of_partner] == length[texts.of_text])
    usable = ~np.isin(design.couples, design.couples[~fits])
    other = np.arange(len(texts.first_text))
    other[texts.of_text[usable]] = of_partner[usable]
    ids_of = [ids for batch in texts.batches for ids in batch]
    collected: dict[frozenset[str], list[list[np.ndarray]]] = {}
    needed = np.unique(texts.of_text[usable])
    for span in texts.spans() if len(needed) else ():
        chosen = needed[(needed >= span.start) & (needed < span.stop)]
        # The batch holds every sequence four times.
        for rows in np.array_split(chosen, min(4, len(chosen))) if len(chosen) else ():
            ids = torch.stack([ids_of[i] for i in rows])
            partners = torch.stack([ids_of[i] for i in other[rows]])
            for part, levels in components.frozen(model, blocks, ids, partners).items():
                collected.setdefault(part, []).append([level.double().cpu().numpy() for level in levels])
    place = np.zeros(len(texts.first_text), dtype=np.int64)
    place[needed] = np.arange(len(needed))
    runs = {
        part: [np.concatenate(level)[place[texts.of_text]] for level in zip(*chunks, strict=True)]
        for part, chunks in collected.items()
    }
    return runs, usable


def shares(
    clean: Sequence[Float[np.ndarray, "texts d"]],
    runs: Mapping[frozenset[str], Sequence[Float[np.ndarray, "texts d"]]],
    design: Design,
    pair: tuple[str, str],
    factor: str,
    confidence: float = 0.95,
) -> Shares:
    """Shares of ‖δ‖² and ‖d_factor‖² that frozen parts remove, with Shapley values; every text has a counterfactual.

    NaN where the interval of the length contains 0, or ‖δ‖² is negligible beside ‖d_a‖‖d_b‖ (1e-6).
    """
    target = "^".join(pair)
    couples = attribution.first_of(design.couples, design.items)
    g = len(np.unique(couples))
    collected: dict[str, dict[str, list[np.ndarray]]] = {"interaction": {}, "effect": {}, "difference": {}}
    for layer, x in enumerate(clean):
        lengths = {name: _deleted(x, design, name, couples) for name in (target, factor, *pair)}
        above = {name: bool(attribution.jackknifed(length, confidence).lower > 0) for name, length in lengths.items()}
        effects = np.sqrt(np.prod([max(lengths[name][0], 0.0) for name in pair]))
        above[target] &= bool(lengths[target][0] > NEGLIGIBLE * effects)
        found = {}
        for kind, name in (("interaction", target), ("effect", factor)):
            removed = {}
            for part, levels in runs.items():
                mixed = _references(x, levels[layer], design, factor)
                left = np.mean([_deleted(reference, design, name, couples) for reference in mixed], axis=0)
                removed[part] = 1 - left / lengths[name] if above[name] else np.full(1 + g, np.nan)
            found[kind] = _shapley(removed)
        found["difference"] = {key: found["interaction"][key] - found["effect"][key] for key in found["effect"]}
        for kind, values in found.items():
            for key, draws in values.items():
                collected[kind].setdefault(key, []).append(draws)
    intervals = {
        kind: {key: attribution.jackknifed(np.stack(draws), confidence) for key, draws in by.items()}
        for kind, by in collected.items()
    }
    return Shares(**intervals, n_units=g)


def share_rows(
    pair: tuple[str, str],
    runs: Mapping[str, tuple[Mapping[frozenset[str], Sequence[np.ndarray]], Bool[np.ndarray, " texts"]]],
    readings: Readings,
    design: Design,
    texts: Sequences,
    confidence: float,
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Shares of one pair, with the factor frozen that most couples can be flipped in (the first where it is a tie)."""
    couples = {factor: len(np.unique(design.couples[runs[factor][1]])) for factor in pair}
    factor = max(pair, key=lambda name: couples[name])
    row = {**site, "target": "^".join(pair), "level": 0.0}
    if couples[factor] < FEWEST_COUPLES:
        note = f"neither factor can be flipped token for token in {FEWEST_COUPLES} couples of items"
        yield {**row, "probe": "frozen_attention", "score": "interaction_removed", "estimate": np.nan, "note": note}
        return
    frozen, usable = runs[factor]
    rest = designs.without(design, np.flatnonzero(~usable)) if not usable.all() else design
    clean = [level.double().cpu().numpy()[texts.of_text][usable] for level in readings.residuals]
    kept = {part: [level[usable] for level in levels] for part, levels in frozen.items()}
    found = shares(clean, kept, rest, pair, factor, confidence)
    row |= {"n_groups": found.n_units, "n_texts": len(rest.texts)}
    for kind, score in (
        ("interaction", "interaction_removed"),
        ("effect", "effect_removed"),
        ("difference", "interaction_minus_effect"),
    ):
        for key, interval in getattr(found, kind).items():
            probe = key if key.startswith("shapley") else f"frozen_{key}"
            # Nothing comes before the embedding that could be frozen.
            for layer in range(1, len(clean)):
                note = f"frozen to another {factor}"
                if not np.isfinite(interval.estimate[layer]):
                    note = f"{note}; {UNDEFINED}"
                yield {**row, "layer": layer, "probe": probe, "score": score, "note": note, **_ends(interval, layer)}


def _references(
    clean: Float[np.ndarray, "texts d"], changed: Float[np.ndarray, "texts d"], design: Design, factor: str
) -> Iterator[Float[np.ndarray, "texts d"]]:
    """Residuals with the frozen part as in b = 0 for all texts, then as in b = 1."""
    for reference in (False, True):
        same = (design.factors[factor] == reference)[:, None]
        yield np.where(same, clean, changed)


def _shapley(removed: Mapping[frozenset[str], Float[np.ndarray, " draws"]]) -> dict[str, Float[np.ndarray, " draws"]]:
    both = frozenset(PARTS)
    named = {part: removed[frozenset({part})] for part in PARTS} | {"both": removed[both]}
    for part in PARTS:
        (rest,) = both - {part}
        named[f"shapley_{part}"] = (removed[frozenset({part})] + removed[both] - removed[frozenset({rest})]) / 2
    return named


def _deleted(
    x: Float[np.ndarray, "texts d"], design: Design, target: str, couples: Int[np.ndarray, " items"]
) -> Float[np.ndarray, " draws"]:
    """‖contrast‖² by its U-statistic over couples: of all of them, then without each in turn."""
    units, index = np.unique(couples, return_inverse=True)
    member = np.eye(len(units))[:, index]
    sums = member @ statistics.walsh_contrasts(x, design, [target])[0]
    return attribution.squared(
        sums, member.sum(axis=1), np.concatenate([np.ones((1, len(units))), 1 - np.eye(len(units))])
    )


# --- neurons (C04) -----------------------------------------------------------------------------------------


def within_cells(
    neurons: Sequence[torch.Tensor], design: Design, texts: Sequences
) -> tuple[Float[np.ndarray, " _"], ...]:
    """Standard deviation of every neuron within the cells of the factors, pooled, block by block.

    NaN for a neuron that does not respond to the texts at all: at a token that all texts share, the first block's.
    """
    _, cell = np.unique(designs.cells(design), return_inverse=True)
    member = np.eye(cell.max() + 1)[cell]
    counts = member.sum(axis=0)[:, None]
    found = []
    for level in neurons:
        a = level.double().cpu().numpy()[texts.of_text]
        squares = member.T @ a**2 / counts - (member.T @ a / counts) ** 2
        responds = a.std(axis=0) > CONSTANT * np.sqrt((a**2).mean())
        found.append(np.where(responds, np.sqrt(np.maximum(squares, 0).mean(axis=0)), np.nan))
    return tuple(found)


def neuron_scores(
    measured: Contrasts,
    blocks: Sequence[Block],
    deviations: Sequence[Float[np.ndarray, " _"]],
    pair: tuple[str, str],
    half: Bool[np.ndarray, " g"],
    confidence: float = 0.95,
) -> dict[int, dict[str, tuple[float, Interval]]]:
    """Scores and their levels by layer (1 … L: the neurons of the block before it; −1: all, ranked within blocks).

    partial_rank_correlation of |d_a d_b| with |δ| given the within-cell deviation; subadditive_share, weighted. Blocks
    in which fewer than three neurons respond are left out.
    """
    g = len(half)
    weights = np.concatenate([np.ones((1, g)), 1 - np.eye(g)])
    correlations: dict[int, list[np.ndarray]] = {}
    below: dict[int, list[np.ndarray]] = {}
    for side in (half, ~half):
        ranks, weighted = {}, {}
        for layer, (block, level, deviation) in enumerate(zip(blocks, measured.neurons, deviations, strict=True), 1):
            responds = np.isfinite(deviation)
            if responds.sum() < 3:
                continue
            a, b = (_mean(level[name], measured.sizes, weights * side)[:, responds] for name in pair)
            interaction = _mean(level["^".join(pair)], measured.sizes, weights * ~side)[:, responds]
            spread = np.broadcast_to(deviation[responds], a.shape)
            ranks[layer] = np.stack([_ranks(np.abs(values)) for values in (a * b, interaction, spread)])
            length = torch.linalg.vector_norm(components.writes(block.neurons_out).double(), dim=1).cpu().numpy()
            weight = np.sqrt(np.abs(a * b)) * length[responds]
            weighted[layer] = np.stack([weight * (np.sign(a * b) * interaction < 0), weight])
        for place, chosen in {**{layer: [layer] for layer in ranks}, -1: list(ranks)}.items():
            if chosen:
                correlations.setdefault(place, []).append(
                    _partial(*np.concatenate([ranks[layer] for layer in chosen], axis=2))
                )
                sub, total = np.concatenate([weighted[layer] for layer in chosen], axis=2).sum(axis=2)
                with np.errstate(invalid="ignore", divide="ignore"):
                    below.setdefault(place, []).append(np.where(total > 0, sub / total, np.nan))
    return {
        place: {
            "partial_rank_correlation": (0.0, attribution.jackknifed(np.mean(correlations[place], axis=0), confidence)),
            "subadditive_share": (0.5, attribution.jackknifed(np.mean(below[place], axis=0), confidence)),
        }
        for place in correlations
    }


def _ranks(values: Float[np.ndarray, "R n"]) -> Float[np.ndarray, "R n"]:
    """Ranks as shares of the largest, so that blocks of different size can be pooled."""
    return rankdata(values, axis=1) / values.shape[1]


def _partial(
    x: Float[np.ndarray, "R n"], y: Float[np.ndarray, "R n"], z: Float[np.ndarray, "R n"]
) -> Float[np.ndarray, " R"]:
    """Correlation of x and y given z, of ranks."""
    xy, xz, yz = _correlation(x, y), _correlation(x, z), _correlation(y, z)
    with np.errstate(invalid="ignore", divide="ignore"):
        left = np.sqrt((1 - xz**2) * (1 - yz**2))
        return np.where(left > 1e-9, (xy - xz * yz) / left, np.nan)


def _mean(
    sums: Float[np.ndarray, "g a"], sizes: Float[np.ndarray, " g"], weights: Float[np.ndarray, "R g"]
) -> Float[np.ndarray, "R a"]:
    return (weights @ sums) / (weights @ sizes)[:, None]


# --- what they share ---------------------------------------------------------------------------------------


def _ends(interval: Interval, place: int | None = None) -> dict[str, float]:
    ends = (interval.estimate, interval.lower, interval.upper)
    values = [float(np.ravel(end)[place or 0]) for end in ends]
    return dict(zip(("estimate", "lower", "upper"), values, strict=True))
