"""Layer by layer: is the next token settled at one layer or by and by, do probe directions turn, does the model say it?

*Lenses*. The prediction that a layer's residual already contains, against the model's own, in bits:

    logit lens   U N(x_l)                    (nostalgebraist 2020)
    tuned lens   U N(x_l + A_l x_l + b_l)    (Belrose et al. 2023, arXiv 2303.08112): A_l, b_l trained for the least KL

    KL_l = mean over tokens of KL(final ‖ lens)

U, N: unembedding and final normalisation. Trained on one half of the couples of items, scored on the other, at every token
of the texts. `level` is the KL of a guess that knows nothing of the text: the mean of the final predictions on the first
half. `share_of_drop` of layer l is (KL_{l−1} − KL_l) / KL_0; `largest_share` the largest of them (C53: below .4 where
refinement is smooth; its note names the layer).

*Rotation*. d_l is the difference of class means (Walsh contrast) at layer l, on one half of the couples;
`cosine_next` = cos(d_l on one half, d_{l+1} on the other), both ways averaged: noise is not shared. `reliability` is the same
at one layer: what `cosine_next` would be if the direction did not turn. Level 0: random directions.

*What the model says* (C55). Every feature with a read-out is asked of the model, and of a probe on the last token's residual
at the layer of most bits on the inner folds; `probe_minus_answer` is their difference in accuracy, paired text by text.

*What KL does not see* (C50). Noise N(0, 1) is added to the final log-probabilities of the tokens that the model ranks in the
lower nine tenths, and to all; of both, with the same draws, the mean KL and the mean squared distance of log-probabilities.
`unlikely_kl_share` and `unlikely_distance_share` are the former over the latter: what unlikely tokens have of either measure.

Intervals: jackknife over couples (lenses, rotation, noise), bootstrap over items × carriers (answers).

Pitfalls: a logit lens fails where a layer's basis is not the last one's; that is what the tuned lens is beside it for. A
tuned lens can learn what the model does not do. A cosine of 1 between layers of a residual stream is what adding nothing
gives: it is persistence, not stability of a computation. Where one token has nearly all the probability, no noise moves the KL
much, and unlikely tokens have a large share of little.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterprobe import (
    attribution,
    capacity,
    checkpoints,
    components,
    designs,
    extraction,
    interference,
    language_model,
    neuron_sources,
    probe_controls,
    probe_grid,
    progress,
    statistics,
    tables,
    tokenization,
)
from counterprobe.components import Sequences
from counterprobe.designs import Design
from counterprobe.probe_grid import PUBLISHED, REFERENCE
from counterprobe.revisions import step_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BITS = 1 / np.log(2)
# Standard deviation over texts, beside the largest coordinate, below which a layer is the same for all texts.
CONSTANT = 1e-6
LENSES = ("logit_lens", "tuned_lens")
# Share of the vocabulary that counts as unlikely, after W. Gurnee's remark on KL; tokens that are moved at once.
UNLIKELY = 0.9
TOKENS_AT_ONCE = 512


def measure(
    checkpoint: str | Path, design: Design, spec: Mapping[str, Any], cell: Mapping[str, str], *, device: str
) -> pd.DataFrame:
    """Lenses, rotation and answers of one model under trained weights.

    spec: `neurons` (items, lens, seed), `probes`, `statistics`, `activations` (positions, primary_bos, token_budget),
    `design` (protocols, unreadable). The texts are read up to the last of the read positions.
    """
    source = checkpoints.open_checkpoint(checkpoint)
    tokenizer = tokenization.load_tokenizer(source)
    settings, reading = spec["neurons"], spec["activations"]
    design = extraction.readable(design, tokenizer, spec["design"]["unreadable"])
    design = designs.thinned(design, settings["items"], np.random.default_rng(settings["seed"]))
    position = max(reading["positions"], key=lambda name: design.marks[name].mean() if name in design.marks else -1)
    model = language_model.load(source, device=device)
    texts = components.sequences(
        model, tokenizer, design, position, bos=reading["primary_bos"], token_budget=reading["token_budget"]
    )
    site = {
        **tables.NOT_APPLICABLE,
        **cell,
        "step": step_of(cell["revision"]),
        "position": position,
        "bos": reading["primary_bos"],
        "n_texts": len(design.texts),
    }
    residuals, owner = stream(model, texts)
    last = np.flatnonzero(np.append(owner[1:] != owner[:-1], True))
    read = [level[last].double().cpu().numpy()[texts.of_text] for level in residuals]
    rows = list(lens_rows(model, residuals, owner, design, texts, settings, spec["statistics"], site))
    rows += rotation_rows(read, design, attribution.visible(design, texts), settings, spec["statistics"], site)
    rows += answer_rows(model, tokenizer, read, design, spec, site, device=device)
    return tables.frame(rows)


def stream(
    model: "PreTrainedModel", texts: Sequences
) -> tuple[tuple[Float[Tensor, "tokens d"], ...], Int[np.ndarray, " tokens"]]:
    """Residuals of every token, layers 0 … L, and the sequence that each token belongs to."""
    blocks = components.blocks_of(model)
    levels: list[list[Tensor]] = [[] for _ in range(len(blocks) + 1)]
    owner = []
    for span, ids in zip(texts.spans(), texts.batches, strict=True):
        run = components.trace(model, blocks, ids, read_only=False)
        for level, entering in zip(levels, run.entering, strict=True):
            level.append(entering.flatten(0, 1))
        owner.append(np.repeat(np.arange(span.start, span.stop), ids.shape[1]))
    # Leaving inference mode: a lens is trained on these.
    return tuple(torch.cat(level).clone() for level in levels), np.concatenate(owner)


# --- lenses (C53) --------------------------------------------------------------------------------------------


def lens_rows(
    model: "PreTrainedModel",
    residuals: Sequence[Float[Tensor, "tokens d"]],
    owner: Int[np.ndarray, " tokens"],
    design: Design,
    texts: Sequences,
    settings: Mapping[str, Any],
    statistic: Mapping[str, Any],
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """KL by layer of both lenses, and how the drop is shared out among the layers."""
    couples, half = neuron_sources.halves(design, settings["seed"])
    if len(couples) < 2 * interference.FEWEST_COUPLES:
        progress.logger("layers").warning("%s: %d couples of items are too few for a lens", design.name, len(couples))
        return
    couple = np.searchsorted(couples, design.couples[texts.first_text])[owner]
    rng = np.random.default_rng([settings["seed"], 4])
    lens = settings["lens"]
    train, test = (
        np.sort(rng.permutation(np.flatnonzero(side))[: lens["tokens"]]) for side in (half[couple], ~half[couple])
    )
    maps = tuned(model, [level[train] for level in residuals], lens)
    final = _log_probabilities(model, residuals[-1][train]).exp().mean(dim=0).log()
    own = _log_probabilities(model, residuals[-1][test])
    unit = couple[test]
    tested = np.flatnonzero(np.bincount(unit, minlength=len(couples)))
    member = np.eye(len(couples))[:, unit][tested]
    counts = member.sum(axis=1)
    weights = np.concatenate([np.ones((1, len(tested))), 1 - np.eye(len(tested))])
    blind = float(_divergence(own, final.expand_as(own)).mean())
    confidence = statistic["confidence"]
    for name in LENSES:
        means = []
        for layer, level in enumerate(residuals):
            x = level[test]
            moved = x if name == LENSES[0] or layer == len(maps) else x + x @ maps[layer][0] + maps[layer][1]
            means.append(member @ _divergence(own, _log_probabilities(model, moved)).cpu().numpy())
        draws = np.stack([(weights @ sums) / (weights @ counts) for sums in means])
        row = {**site, "probe": name, "protocol": "items", "n_groups": len(tested)}
        for layer, values in enumerate(draws):
            ends = _ends(attribution.jackknifed(values, confidence))
            yield {**row, "layer": layer, "score": "kl", "level": blind, **ends}
        shares = (draws[:-1] - draws[1:]) / draws[:1]
        for layer, values in enumerate(shares, 1):
            ends = _ends(attribution.jackknifed(values, confidence))
            yield {**row, "layer": layer, "score": "share_of_drop", "level": 1 / len(shares), **ends}
        steepest = int(shares[:, 0].argmax())
        ends = _ends(attribution.jackknifed(shares[steepest], confidence))
        yield {**row, "score": "largest_share", "level": 1 / len(shares), "note": f"at layer {steepest + 1}", **ends}
    few, every = (member @ part for part in unlikely(own, torch.Generator().manual_seed(settings["seed"])))
    row = {**site, "probe": "perturbed_logits", "protocol": "items", "n_groups": len(tested)}
    for place, score in enumerate(("unlikely_kl_share", "unlikely_distance_share")):
        draws = (weights @ few[:, place]) / (weights @ every[:, place])
        yield {**row, "score": score, "level": UNLIKELY, **_ends(attribution.jackknifed(draws, confidence))}


def tuned(
    model: "PreTrainedModel", residuals: Sequence[Float[Tensor, "tokens d"]], lens: Mapping[str, Any]
) -> list[tuple[Float[Tensor, "d d"], Float[Tensor, " d"]]]:
    """(A_l, b_l) of every layer but the last, from 0, by Adam with a rate that falls to 0; the same batches for all.

    lens: steps, batch, learning_rate.
    """
    stacked = torch.stack([level.detach() for level in residuals[:-1]])
    n_layers, n, d = stacked.shape
    target = _log_probabilities(model, residuals[-1])
    turn = torch.zeros(n_layers, d, d, device=stacked.device, dtype=stacked.dtype, requires_grad=True)
    shift = torch.zeros(n_layers, 1, d, device=stacked.device, dtype=stacked.dtype, requires_grad=True)
    optimiser = torch.optim.Adam([turn, shift], lr=lens["learning_rate"])
    generator = torch.Generator().manual_seed(0)
    for step in range(lens["steps"]):
        rows = torch.randint(n, (lens["batch"],), generator=generator).to(stacked.device)
        x = stacked[:, rows]
        for group in optimiser.param_groups:
            group["lr"] = lens["learning_rate"] * (1 - step / lens["steps"])
        optimiser.zero_grad()
        found = _head(model, x + x @ turn + shift).log_softmax(dim=-1)
        wanted = target[rows]
        # Layers have no parameter in common: the gradient of the sum is each one's own.
        (wanted.exp() * (wanted - found)).sum(dim=-1).mean(dim=1).sum().backward()
        optimiser.step()
    return [(turn[layer].detach(), shift[layer, 0].detach()) for layer in range(n_layers)]


def unlikely(
    own: Float[Tensor, "tokens V"], generator: torch.Generator
) -> tuple[Float[np.ndarray, "tokens 2"], Float[np.ndarray, "tokens 2"]]:
    """KL and squared distance of log-probabilities, noise on the unlikely tokens and on all: of log-probabilities `own`."""
    found: list[list[Tensor]] = [[], []]
    for p in own.split(TOKENS_AT_ONCE):
        noise = torch.randn(p.shape, generator=generator).to(p)
        rank = p.argsort(dim=1).argsort(dim=1)
        for kept, parts in zip(
            (rank < UNLIKELY * p.shape[1], torch.ones_like(rank, dtype=torch.bool)), found, strict=True
        ):
            q = (p + noise * kept).log_softmax(dim=1)
            parts.append(torch.stack([_divergence(p, q), (p - q).double().square().sum(dim=1)], dim=1))
    few, every = (torch.cat(parts).cpu().numpy() for parts in found)
    return few, every


def _head(model: "PreTrainedModel", x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch V"]:
    return model.get_output_embeddings()(neuron_sources.final_norm(model)(x))


def _log_probabilities(model: "PreTrainedModel", x: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens V"]:
    with torch.inference_mode():
        found = _head(model, x).log_softmax(dim=-1)
    return found.clone()


def _divergence(p: Float[Tensor, "tokens V"], q: Float[Tensor, "tokens V"]) -> Float[Tensor, " tokens"]:
    """KL(p ‖ q) in bits, of log-probabilities."""
    return (p.exp() * (p - q)).sum(dim=-1).double() * BITS


# --- rotation ------------------------------------------------------------------------------------------------


def rotation_rows(
    read: Sequence[Float[np.ndarray, "texts d"]],
    design: Design,
    visible: Sequence[str],
    settings: Mapping[str, Any],
    statistic: Mapping[str, Any],
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Cosines of the class-mean direction between layers, and with itself, from halves that share no item."""
    targets = [name for name in capacity.targets(design) if set(name.split("^")) <= set(visible)]
    couples, half = neuron_sources.halves(design, settings["seed"])
    if not targets or len(couples) < 2 * interference.FEWEST_COUPLES:
        return
    member = np.eye(len(couples))[:, np.searchsorted(couples, attribution.first_of(design.couples, design.items))]
    weights = np.concatenate([np.ones((1, len(couples))), 1 - np.eye(len(couples))])
    sums = [
        dict(zip(targets, member @ statistics.walsh_contrasts(level, design, targets), strict=True)) for level in read
    ]
    # At a token that all texts share the embedding is constant, and has no direction.
    constant = [bool(level.std(axis=0).max() <= CONSTANT * np.abs(level).max()) for level in read]
    for target in targets:
        halves = [[(weights * side) @ level[target] for level in sums] for side in (half, ~half)]
        row = {
            **site,
            "target": target,
            "probe": "mass_mean",
            "protocol": "items",
            "n_groups": len(couples),
            "level": 0.0,
        }
        for score, ahead in (("reliability", 0), ("cosine_next", 1)):
            for layer in range(len(read) - ahead):
                if constant[layer]:
                    continue
                one, other = (_cosine(halves[a][layer], halves[b][layer + ahead]) for a, b in ((0, 1), (1, 0)))
                interval = attribution.jackknifed((one + other) / 2, statistic["confidence"])
                yield {**row, "layer": layer, "score": score, **_ends(interval)}


def _cosine(a: Float[np.ndarray, "draws d"], b: Float[np.ndarray, "draws d"]) -> Float[np.ndarray, " draws"]:
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


# --- what the model says (C55) -------------------------------------------------------------------------------


def answer_rows(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    read: Sequence[Float[np.ndarray, "texts d"]],
    design: Design,
    spec: Mapping[str, Any],
    site: Mapping[str, Any],
    *,
    device: str,
) -> Iterator[dict[str, Any]]:
    """Accuracy of the probe, of the model's own answer and their difference, for every feature that can be asked for."""
    protocols = probe_grid.testable(design, spec["design"]["protocols"], spec["probes"])
    chosen = next(((protocol, folds) for protocol, folds in protocols if protocol != PUBLISHED), None)
    if chosen is None or not design.readouts:
        return
    protocol, folds = chosen
    names = list(design.readouts)
    labels = np.stack([designs.parity(design, name) for name in names], axis=1)
    odds = np.stack(
        [
            language_model.answers(
                model, tokenizer, readout.prefixes, readout.positive, readout.negative, bos=site["bos"]
            )
            for readout in design.readouts.values()
        ],
        axis=1,
    )
    answered = (np.sign(np.where(labels, odds, -odds)) + 1) / 2
    penalties = spec["probes"]["penalties"]
    found = [
        probe_grid.cross_validate(
            torch.tensor(level, dtype=torch.float32, device=device), labels, folds, penalties, REFERENCE
        )
        for level in read
    ]
    layers = np.stack([held_out.inner_bits.mean(axis=0) for held_out in found]).argmax(axis=0)
    probed = np.stack([found[layer].correct[:, column] for column, layer in enumerate(layers)], axis=1)
    fair = probe_controls.in_balance(labels, design)
    resampling = probe_grid.resample(design, names, spec["statistics"], spec["probes"]["seed"])
    row = {**site, "protocol": protocol}
    for probe, score, level, values in (
        (REFERENCE, "accuracy", 0.5, probed * fair),
        ("answer", "accuracy", 0.5, answered * fair),
        ("answer", "probe_minus_answer", 0.0, (probed - answered) * fair),
    ):
        yield from capacity.mean_rows(
            values, resampling, names, {**row, "probe": probe, "score": score, "level": level}
        )


def _ends(interval: statistics.Interval) -> dict[str, float]:
    ends = (interval.estimate, interval.lower, interval.upper)
    return dict(zip(("estimate", "lower", "upper"), (float(end) for end in ends), strict=True))
