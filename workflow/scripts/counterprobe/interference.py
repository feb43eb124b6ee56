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
from counterprobe.components import Block, Readings, Sequences
from counterprobe.designs import Design
from counterprobe.revisions import step_of
from counterprobe.statistics import Interval

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# An interaction below this share of ‖d_A‖‖d_B‖ (squared lengths) is rounding: a share of it means nothing.
NEGLIGIBLE = 1e-6
# Couples below which no interval over couples is worth the name.
FEWEST_COUPLES = 6
# Floats of one block of permuted profiles.
BLOCK_FLOATS = 1 << 23
PARTS = ("attention", "mlp")
UNDEFINED = "no interaction to take shares of: the interval of its squared length contains 0"


@dataclass(frozen=True)
class Contrasts:
    """Effects of features and interactions of pairs, summed over the items of each couple ("units", g of them).

    residuals[l], heads[l], neurons[l]: target -> [g, width]; layers 0 … L and blocks 0 … L−1. sizes: items a unit.
    """

    features: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    residuals: tuple[dict[str, Float[np.ndarray, "g d"]], ...]
    heads: tuple[dict[str, Float[np.ndarray, "g z"]], ...]
    neurons: tuple[dict[str, Float[np.ndarray, "g a"]], ...]
    sizes: Float[np.ndarray, " g"]
    strata: Int[np.ndarray, " g"]


@dataclass(frozen=True)
class Overlap:
    """Pairs × layers 1 … L. spearman with its interval and permutation p; each point's own numbers for drawing."""

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
    features = visible(design, texts)
    confidence = statistic["confidence"]
    measured = contrasts(readings, design, texts, features)
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
    yield from overlap_rows(shared, measured, site)
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


def visible(design: Design, texts: Sequences) -> tuple[str, ...]:
    """Factors that are decided by the tokens up to the read one; a causal model knows nothing of the others."""
    return tuple(
        factor
        for factor, labels in design.factors.items()
        if np.array_equal(labels[texts.first_text][texts.of_text], labels)
    )


def contrasts(readings: Readings, design: Design, texts: Sequences, features: Sequence[str]) -> Contrasts:
    """Effects and interactions of all residuals and components, one block at a time."""
    pairs = tuple(itertools.combinations(features, 2))
    targets = [*features, *("^".join(pair) for pair in pairs)]
    couple_of_item = _first_of(design.couples, design.items)
    couples, unit_of_item = np.unique(couple_of_item, return_inverse=True)
    member = np.eye(len(couples))[:, unit_of_item]

    def summed(level: torch.Tensor) -> dict[str, Float[np.ndarray, "g width"]]:
        found = statistics.walsh_contrasts(level.double().cpu().numpy()[texts.of_text], design, targets)
        return {target: member @ effect for target, effect in zip(targets, found, strict=True)}

    return Contrasts(
        features=tuple(features),
        pairs=pairs,
        residuals=tuple(summed(level) for level in readings.residuals),
        heads=tuple(summed(level) for level in readings.heads),
        neurons=tuple(summed(level) for level in readings.neurons),
        sizes=member.sum(axis=1),
        strata=_first_of(_first_of(design.strata, design.items), unit_of_item),
    )


def halves(strata: Int[np.ndarray, " g"], rng: np.random.Generator) -> Bool[np.ndarray, " g"]:
    """A random half of the units, evenly from every stratum."""
    order = rng.permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    half = np.zeros(len(strata), dtype=bool)
    half[order[::2]] = True
    return half


# --- shared components (C02) -------------------------------------------------------------------------------


def profile(
    measured: Contrasts, blocks: Sequence[Block], feature: str, layer: int, weights: Float[np.ndarray, "R g"]
) -> Float[np.ndarray, "R C"]:
    """Exact contribution of every head and neuron of blocks 0 … layer − 1 to d_feature at a layer, for every weighting of
    the units: block by block, heads before neurons."""
    share = weights / (weights @ measured.sizes)[:, None]
    effect = share @ measured.residuals[layer][feature]
    unit = effect / np.maximum(np.linalg.norm(effect, axis=1, keepdims=True), np.finfo(float).tiny)
    parts = []
    for block, z, a in zip(blocks[:layer], measured.heads, measured.neurons, strict=False):
        for kind, level in ((components.HEADS, z), (components.NEURONS, a)):
            out = components.writes(block.out(kind)).double().cpu().numpy()
            along = (share @ level[feature]) * (unit @ out.T)
            parts.append(along.reshape(len(along), block.count(kind), -1).sum(axis=2))
    return np.concatenate(parts, axis=1)


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
    sizes = [_group_sizes(blocks[:layer]) for layer in layers]
    orders = {feature: _Shuffles(sizes[-1], permutations, rng) for feature in measured.features}
    cosines, ratios, nulls = [], [], []
    for side in (half, ~half):
        profiles = [
            {name: np.abs(profile(measured, blocks, name, layer, weights * side)) for name in measured.features}
            for layer in layers
        ]
        cosines.append(np.stack([_cosine(at[a], at[b]) for at in profiles for a, b in measured.pairs], axis=1))
        ratios.append(
            np.stack(
                [ratio(measured, pair, layer, weights * ~side) for layer in layers for pair in measured.pairs], axis=1
            )
        )
        observed = [{name: values[0] for name, values in at.items()} for at in profiles]
        nulls.append(_permuted(observed, measured.pairs, orders, permutations))
    spearman = np.mean([_spearman(x, y) for x, y in zip(cosines, ratios, strict=True)], axis=0)
    null = np.mean([_spearman(x, y[:1]) for x, y in zip(nulls, ratios, strict=True)], axis=0)
    units = int(min(half.sum(), (~half).sum()))
    reached = int((null >= spearman[0] - 1e-12).sum())
    return Overlap(
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
    interaction, a, b = (squared(at[name], measured.sizes, weights) for name in ("^".join(pair), *pair))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((a > 0) & (b > 0), interaction / np.sqrt(a * b), np.nan)


def squared(
    sums: Float[np.ndarray, "g d"], sizes: Float[np.ndarray, " g"], weights: Float[np.ndarray, "R g"]
) -> Float[np.ndarray, " R"]:
    """‖mean contrast‖² without the products of a unit with itself, for every weighting of the units: unbiased also under
    a bootstrap, which pairs a unit with its own copies."""
    gram = sums @ sums.T
    own = (weights**2) @ gram.diagonal()
    counts = (weights @ sizes) ** 2 - (weights**2) @ (sizes**2)
    return (((weights @ gram) * weights).sum(axis=1) - own) / counts


def overlap_rows(shared: Overlap, measured: Contrasts, site: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The two numbers of every point, then the correlation over all of them (target "pairs", the whole model)."""
    points = itertools.product(range(1, len(measured.residuals)), measured.pairs)
    for place, (layer, pair) in enumerate(points):
        row = {**site, "layer": layer, "target": "^".join(pair), "probe": "attribution"}
        yield {**row, "score": "profile_overlap", "level": 0.0, **_ends(shared.overlap, place)}
        yield {**row, "score": "interaction_ratio", "level": 0.0, **_ends(shared.ratio, place)}
    row = {**site, "target": "pairs", "probe": "attribution"}
    known = shared.null[np.isfinite(shared.null)]
    level = float(known.mean()) if len(known) else float("nan")
    note = f"over {shared.ratio.estimate.size} points (pairs x layers); level: mean of the permuted profiles"
    if not np.isfinite(shared.spearman.estimate[0]):
        note = "no rank correlation: fewer than 3 points, or the ratio is undefined at one of them"
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
    observed: Sequence[Mapping[str, Float[np.ndarray, " C"]]],
    pairs: Sequence[tuple[str, str]],
    orders: Mapping[str, _Shuffles],
    draws: int,
) -> Float[np.ndarray, "draws points"]:
    """Overlaps of profiles whose components were shuffled, for every feature by itself."""
    blocks = []
    for shuffled in zip(*orders.values(), strict=True):
        order = dict(zip(orders, shuffled, strict=True))
        columns = []
        for at in observed:
            length = len(next(iter(at.values())))
            # Earlier layers have the first of the components, which groups keep among themselves.
            drawn = {name: at[name][order[name][:, :length]] for name in at}
            columns += [_cosine(drawn[a], drawn[b]) for a, b in pairs]
        blocks.append(np.stack(columns, axis=1))
    return np.concatenate(blocks)[:draws]


def _group_sizes(blocks: Sequence[Block]) -> list[int]:
    return [block.count(kind) for block in blocks for kind in components.KINDS]


def _cosine(x: Float[np.ndarray, "R C"], y: Float[np.ndarray, "R C"]) -> Float[np.ndarray, " R"]:
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return (x * y).sum(axis=1) / np.maximum(lengths, np.finfo(float).tiny)


def _spearman(x: Float[np.ndarray, "R points"], y: Float[np.ndarray, "R points"]) -> Float[np.ndarray, " R"]:
    """Rank correlation of every row; NaN where there are fewer than three points, or a NaN among them."""
    if x.shape[1] < 3:
        return np.full(max(len(x), len(y)), np.nan)
    known = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    found = _correlation(rankdata(np.nan_to_num(x), axis=1), rankdata(np.nan_to_num(y), axis=1))
    return np.where(known, found, np.nan)


def _correlation(x: Float[np.ndarray, "R n"], y: Float[np.ndarray, "R n"]) -> Float[np.ndarray, " R"]:
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

    NaN where the interval of ‖δ‖² contains 0, or it is negligible beside ‖d_a‖‖d_b‖ (1e-6).
    """
    target = "^".join(pair)
    couples = _first_of(design.couples, design.items)
    g = len(np.unique(couples))
    collected: dict[str, dict[str, list[np.ndarray]]] = {"interaction": {}, "effect": {}, "difference": {}}
    for layer, x in enumerate(clean):
        lengths = {name: _deleted(x, design, name, couples) for name in (target, factor, *pair)}
        half_width = special.stdtrit(g - 1, (1 + confidence) / 2) * _jackknife_error(lengths[target])
        small = lengths[target][0] <= NEGLIGIBLE * np.sqrt(np.prod([max(lengths[name][0], 0.0) for name in pair]))
        defined = lengths[target][0] - half_width > 0 and not small
        found = {}
        for kind, name, known in (("interaction", target, defined), ("effect", factor, lengths[factor][0] > 0)):
            removed = {frozenset(): np.zeros(1 + g)}
            for part, levels in runs.items():
                left = np.mean([_deleted(mixed, design, name, couples) for mixed in _references(x, levels[layer], design, factor)], axis=0)
                removed[part] = 1 - left / lengths[name] if known else np.full(1 + g, np.nan)
            found[kind] = _shapley(removed)
        found["difference"] = {key: found["interaction"][key] - found["effect"][key] for key in found["effect"]}
        for kind, values in found.items():
            for key, draws in values.items():
                collected[kind].setdefault(key, []).append(draws)
    return Shares(
        **{kind: {key: _jackknifed(np.stack(draws), confidence) for key, draws in by.items()} for kind, by in collected.items()},
        n_units=g,
    )


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
                if not np.isfinite(interval.estimate[layer]) and kind != "effect":
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
) -> Float[np.ndarray, " 1+g"]:
    """‖contrast‖² by its U-statistic over couples: of all of them, then without each in turn."""
    units, index = np.unique(couples, return_inverse=True)
    member = np.eye(len(units))[:, index]
    sums = member @ statistics.walsh_contrasts(x, design, [target])[0]
    return squared(sums, member.sum(axis=1), np.concatenate([np.ones((1, len(units))), 1 - np.eye(len(units))]))


# --- neurons (C04) -----------------------------------------------------------------------------------------


def within_cells(
    neurons: Sequence[torch.Tensor], design: Design, texts: Sequences
) -> tuple[Float[np.ndarray, " a"], ...]:
    """Standard deviation of every neuron within the cells of the factors, pooled, block by block."""
    _, cell = np.unique(designs.cells(design), return_inverse=True)
    member = np.eye(cell.max() + 1)[cell]
    counts = member.sum(axis=0)[:, None]
    found = []
    for level in neurons:
        a = level.double().cpu().numpy()[texts.of_text]
        squares = member.T @ a**2 / counts - (member.T @ a / counts) ** 2
        found.append(np.sqrt(np.maximum(squares, 0).mean(axis=0)))
    return tuple(found)


def neuron_scores(
    measured: Contrasts,
    blocks: Sequence[Block],
    deviations: Sequence[Float[np.ndarray, " a"]],
    pair: tuple[str, str],
    half: Bool[np.ndarray, " g"],
    confidence: float = 0.95,
) -> dict[int, dict[str, tuple[float, Interval]]]:
    """Scores and their levels by layer (1 … L: the neurons of the block before it; −1: all, ranked within blocks).

    partial_rank_correlation of |d_a d_b| with |δ| given the within-cell deviation; subadditive_share, weighted.
    """
    g = len(half)
    weights = np.concatenate([np.ones((1, g)), 1 - np.eye(g)])
    numbers = []
    for side in (half, ~half):
        blockwise = []
        for block, level in zip(blocks, measured.neurons, strict=True):
            a, b = (_mean(level[name], measured.sizes, weights * side) for name in pair)
            blockwise.append((a * b, _mean(level["^".join(pair)], measured.sizes, weights * ~side), block))
        numbers.append(blockwise)
    found = {}
    places = {layer + 1: [layer] for layer in range(len(blocks))} | {-1: list(range(len(blocks)))}
    for place, layers in places.items():
        correlations, subadditive = [], []
        for blockwise in numbers:
            ranked = [
                np.stack([rankdata(np.abs(values), axis=1) / values.shape[1] for values in (product, interaction)])
                for product, interaction, _ in (blockwise[layer] for layer in layers)
            ]
            x, y = np.concatenate(ranked, axis=2)
            z = np.concatenate([rankdata(deviations[layer]) / len(deviations[layer]) for layer in layers])
            correlations.append(_partial(x, y, np.broadcast_to(z, x.shape)))
            weight = np.concatenate([_output_weight(*blockwise[layer][::2]) for layer in layers], axis=1)
            product, interaction = (
                np.concatenate([blockwise[layer][i] for layer in layers], axis=1) for i in (0, 1)
            )
            below = np.sign(product) * interaction < 0
            total = weight.sum(axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                subadditive.append(np.where(total > 0, (weight * below).sum(axis=1) / total, np.nan))
        found[place] = {
            "partial_rank_correlation": (0.0, _jackknifed(np.mean(correlations, axis=0), confidence)),
            "subadditive_share": (0.5, _jackknifed(np.mean(subadditive, axis=0), confidence)),
        }
    return found


def _output_weight(product: Float[np.ndarray, "R a"], block: Block) -> Float[np.ndarray, "R a"]:
    length = torch.linalg.vector_norm(components.writes(block.neurons_out).double(), dim=1).cpu().numpy()
    return np.sqrt(np.abs(product)) * length


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


def _jackknife_error(draws: Float[np.ndarray, "*K 1+g"]) -> Float[np.ndarray, "*K"]:
    without = draws[..., 1:]
    g = without.shape[-1]
    return np.sqrt((g - 1) / g * ((without - without.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1))


def _jackknifed(draws: Float[np.ndarray, "*K 1+g"], confidence: float) -> Interval:
    """Estimate first, then without each unit in turn; Student's t with g − 1 degrees of freedom."""
    half = special.stdtrit(draws.shape[-1] - 2, (1 + confidence) / 2) * _jackknife_error(draws)
    estimate = draws[..., 0]
    return Interval(np.asarray(estimate), np.asarray(estimate - half), np.asarray(estimate + half))


def _ends(interval: Interval, place: int | None = None) -> dict[str, float]:
    ends = (interval.estimate, interval.lower, interval.upper)
    values = [float(np.ravel(end)[place or 0]) for end in ends]
    return dict(zip(("estimate", "lower", "upper"), values, strict=True))


def _first_of(values: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"]) -> Int[np.ndarray, " g"]:
    """The value that all members of each group share."""
    return values[np.unique(groups, return_index=True)[1]]
