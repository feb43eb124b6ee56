"""What feeds a neuron: its pre-activation taken apart, exactly, into what every earlier component wrote into the stream.

The MLP of block L reads a normalised residual, so with σ the text's own norm the pre-activation of neuron n is a sum,

    u_n = W_in[n] · N(x) + b_in[n] = (1/σ) Σ_c r_n · c + (β · W_in[n] + b_in[n]),      r_n = P (γ ∘ W_in[n])

over everything that was added to the stream before: the embedding, every head, every MLP (and in it every neuron), and the
biases. P removes the mean where the normalisation is a LayerNorm and is the identity for an RMSNorm; γ, β are its gain and
bias. In a parallel block (GPT-NeoX) x is what the block reads; in a sequential one (GPT-2, Llama) the block's own heads
have written as well. Of a gated MLP the gate's argument is the pre-activation. (Elhage et al. 2021,
https://transformer-circuits.pub/2021/framework/.) Float64, for large coordinates cancel; `attribution_error` is what the sum
misses of the model's own pre-activation, relative to its root mean square, and above 1e-5 is an error.

*Which neurons*. Those the configuration names, and the token-neurons: congruence of n with token t is W_out[n] · W_U[t]
(final gain and centring folded in; standardised over the vocabulary), and the neurons with the highest one are taken (Miller
and Neo 2023, "We found an neuron in GPT-2"). Beside each stands a random neuron of the same block whose input norm ‖r_n‖ is
about the same (one of the five nearest).

*How few components* (C16). The feature that moves the neuron most and the five components that carry most of its effect are
chosen on one half of the couples of items; on the other half `share_of_top_5` is the share of the effect that these carry
(`share_of_top_5_single`: with neurons in the place of MLPs), and `mass_of_top_5` what the five largest have of the absolute
contributions of all, which is at most 1.
`patched_share_of_top_5` does it to the model: the five outputs are exchanged for those in the text in which the feature is
flipped, along the direct path to this neuron and no other, and the normalisation is computed anew (path patching, Goldowsky-
Dill et al. 2023, arXiv 2304.05969). Where the two disagree σ carries a part of the effect.

Pitfalls: shares of an effect can exceed 1, for other components work against it. A direct path says nothing of what fed the
component. Intervals are over couples of items; a neuron chosen for its congruence is one of many.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterprobe import (
    attribution,
    checkpoints,
    components,
    designs,
    extraction,
    interference,
    language_model,
    progress,
    statistics,
    tables,
    tokenization,
)
from counterprobe.components import HEADS, NEURONS, Block, Readings, Sequences
from counterprobe.designs import Design
from counterprobe.progress import UserError
from counterprobe.revisions import step_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Normalisation and matrix of a block through which its neurons read the stream.
_LLAMA = ("post_attention_layernorm", "mlp.gate_proj")
INPUTS: Mapping[str, tuple[str, str]] = {
    "gpt_neox": ("post_attention_layernorm", "mlp.dense_h_to_4h"),
    "gpt2": ("ln_2", "mlp.c_fc"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}
FINAL_NORM = ("final_layer_norm", "ln_f", "norm")
TOP = 5
NEAREST = 5
SHARES = ("share_of_top_5", "share_of_top_5_single", "mass_of_top_5", "patched_share_of_top_5")
LARGEST_ERROR = 1e-5
EMBEDDING, BIAS = "embedding", "bias"
RANDOM = "random_neurons"
# Couples in either half below which nothing is chosen and nothing scored.
FEWEST_COUPLES = 4


@dataclass(frozen=True)
class Neuron:
    """Number of block and neuron, both from 0, as in the literature."""

    block: int
    index: int

    def __str__(self) -> str:
        return f"L{self.block}N{self.index}"


@dataclass(frozen=True)
class Reader:
    """How a neuron reads the stream: pre-activation = (1/σ) reads · x + offset."""

    norm: nn.Module
    into: nn.Module
    reads: Float[Tensor, " d"]
    offset: float


@dataclass(frozen=True)
class Parts:
    """Contributions to one neuron's pre-activation, a row a sequence, divided by σ.

    whole: embedding, heads, MLPs, bias, which sum to the pre-activation; single: the neurons that the MLPs consist of.
    """

    names: tuple[str, ...]
    whole: Float[np.ndarray, "sequences C"]
    single_names: tuple[str, ...]
    single: Float[np.ndarray, "sequences N"]


def measure(
    checkpoint: str | Path, design: Design, spec: Mapping[str, Any], cell: Mapping[str, str], *, device: str
) -> pd.DataFrame:
    """Sources of token-neurons and of random ones at every read position.

    spec: `neurons` (items, chosen, count, top, seed), `activations` (positions, primary_bos, token_budget), `statistics`,
    `design.unreadable`. UserError for an unknown architecture and for a named neuron that the model does not have.
    """
    source = checkpoints.open_checkpoint(checkpoint)
    tokenizer = tokenization.load_tokenizer(source)
    settings, reading = spec["neurons"], spec["activations"]
    design = extraction.readable(design, tokenizer, spec["design"]["unreadable"])
    design = designs.thinned(design, settings["items"], np.random.default_rng(settings["seed"]))
    model = language_model.load(source, dtype="float64", device=device)
    blocks = components.blocks_of(model)
    rng = np.random.default_rng([settings["seed"], 1])
    congruent = congruence(model, blocks)
    pairs = choose(model, blocks, congruent, settings, rng)
    site = {**tables.NOT_APPLICABLE, **cell, "step": step_of(cell["revision"]), "bos": reading["primary_bos"]}
    rows = list(congruence_rows(congruent, pairs, tokenizer, spec["statistics"]["confidence"], site))
    for position in reading["positions"]:
        texts = components.sequences(
            model, tokenizer, design, position, bos=reading["primary_bos"], token_budget=reading["token_budget"]
        )
        here = {**site, "position": position, "protocol": "items", "n_texts": len(design.texts)}
        rows += position_rows(model, blocks, design, texts, pairs, settings, spec["statistics"]["confidence"], here)
    return tables.frame(rows)


# --- which neurons -------------------------------------------------------------------------------------------


def congruence(model: "PreTrainedModel", blocks: Sequence[Block]) -> tuple[Float[Tensor, "N V"], ...]:
    """W_out[n] · W_U[t] of every neuron and token, block by block, standardised over the tokens.

    The final normalisation's gain multiplies W_U; a LayerNorm also removes the mean. Neither changes which sign helps t.
    """
    unembedding = model.get_output_embeddings().weight.detach()
    final = final_norm(model)
    towards = unembedding * final.weight.detach()
    if _centres(final):
        towards = towards - towards.mean(dim=1, keepdim=True)
    found = []
    for block in blocks:
        raw = components.writes(block.neurons_out) @ towards.T
        found.append((raw - raw.mean(dim=1, keepdim=True)) / raw.std(dim=1, keepdim=True).clamp(min=1e-30))
    return tuple(found)


def final_norm(model: "PreTrainedModel") -> nn.Module:
    """The normalisation that the unembedding reads. UserError where it is not known."""
    for name in FINAL_NORM:
        if hasattr(model.base_model, name):
            return model.base_model.get_submodule(name)
    raise UserError(f"no final normalisation named {', '.join(FINAL_NORM)}; leave this model out of run.neurons")


def choose(
    model: "PreTrainedModel",
    blocks: Sequence[Block],
    congruent: Sequence[Float[Tensor, "N V"]],
    settings: Mapping[str, Any],
    rng: np.random.Generator,
) -> list[tuple[Neuron, Neuron]]:
    """The named neurons and the most congruent ones above the first block, each with a random one of equal input norm."""
    chosen = [named(name, blocks) for name in settings["chosen"]]
    peak = [level.max(dim=1).values.cpu().numpy() for level in congruent]
    ranked = sorted(
        (Neuron(block, index) for block in range(1, len(blocks)) for index in range(len(peak[block]))),
        key=lambda neuron: (-peak[neuron.block][neuron.index], neuron.block, neuron.index),
    )
    chosen += [neuron for neuron in ranked if neuron not in chosen][: settings["count"]]
    taken, pairs = set(chosen), []
    for neuron in chosen:
        norms = torch.linalg.vector_norm(_reads(model, blocks, neuron.block)[2], dim=1).cpu().numpy()
        order = np.argsort(np.abs(np.log(norms / norms[neuron.index])), kind="stable")
        free = [Neuron(neuron.block, int(index)) for index in order if Neuron(neuron.block, int(index)) not in taken]
        if free:
            other = free[int(rng.integers(min(NEAREST, len(free))))]
            taken.add(other)
            pairs.append((neuron, other))
    return pairs


def named(name: str, blocks: Sequence[Block]) -> Neuron:
    """`L31N892` as a neuron of this model. UserError where there is none."""
    told = re.fullmatch(r"L(\d+)N(\d+)", name)
    if told is None:
        raise UserError(f"config, neurons.chosen: {name!r} is no neuron; write LxNy, both numbers from 0 (L31N892)")
    neuron = Neuron(int(told[1]), int(told[2]))
    if neuron.block >= len(blocks) or neuron.index >= blocks[neuron.block].count(NEURONS):
        size = f"{len(blocks)} blocks of {blocks[0].count(NEURONS)} neurons"
        raise UserError(f"config, neurons.chosen: {name} does not exist; the model has {size}, counted from 0")
    return neuron


def congruence_rows(
    congruent: Sequence[Float[Tensor, "N V"]],
    pairs: Sequence[tuple[Neuron, Neuron]],
    tokenizer: "PreTrainedTokenizerFast",
    confidence: float,
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """The highest congruence of each neuron, its ten tokens (note), and how many of them are forms of the first (C15).

    Forms of a token differ in capitals and spaces only. `variants_in_top_10` is a share of those that the vocabulary has;
    a token without another form has none to find, and no such row.
    """
    vocabulary = [tokenizer.decode([index]) for index in range(min(len(tokenizer), congruent[0].shape[1]))]
    forms: dict[str, list[int]] = {}
    for index, text in enumerate(vocabulary):
        forms.setdefault(text.strip().casefold(), []).append(index)
    shares = []
    for pair in pairs:
        found = []
        for neuron, control in zip(pair, ("none", RANDOM), strict=True):
            values = congruent[neuron.block][neuron.index, : len(vocabulary)].cpu()
            ten = values.topk(min(10, len(values))).indices.tolist()
            variants = forms[vocabulary[ten[0]].strip().casefold()]
            row = {**site, "layer": neuron.block + 1, "probe": str(neuron), "n_texts": 0, "n_groups": 1}
            row |= {"control": control, "note": " ".join(repr(vocabulary[index]) for index in ten)}
            yield {**row, "score": "congruence", "level": 0.0, "estimate": float(values.max())}
            found.append(len(set(variants) & set(ten)) / len(variants) if len(variants) > 1 else np.nan)
            if len(variants) > 1:
                yield {**row, "score": "variants_in_top_10", "estimate": found[-1]}
        shares.append(found)
    yield from _against_random("variants_in_top_10", shares, confidence, {**site, "n_texts": 0})


# --- the sum -------------------------------------------------------------------------------------------------


def reader(model: "PreTrainedModel", blocks: Sequence[Block], neuron: Neuron) -> Reader:
    """How a neuron reads the stream. UserError for an architecture that is not known."""
    norm, into, reads = _reads(model, blocks, neuron.block)
    weight = components.writes(into)[:, neuron.index]
    offset = 0.0 if into.bias is None else float(into.bias[neuron.index])
    shift = getattr(norm, "bias", None)
    return Reader(norm, into, reads[neuron.index], offset + (0.0 if shift is None else float(shift @ weight)))


def sequential(model: "PreTrainedModel") -> bool:
    """Whether a block's neurons read what its heads have written."""
    return not (model.config.model_type == "gpt_neox" and model.config.use_parallel_residual)


def pre_activations(
    model: "PreTrainedModel", blocks: Sequence[Block], texts: Sequences, neurons: Sequence[Neuron]
) -> Float[np.ndarray, "sequences K"]:
    """The model's own pre-activations at the read token, taken where the matrix puts them out."""
    wanted = sorted({neuron.block for neuron in neurons})
    collected: dict[int, list[Tensor]] = {block: [] for block in wanted}

    def keep(block: int) -> Any:
        return lambda module, args, output: collected[block].append(output[:, -1])

    handles = [_reads(model, blocks, block)[1].register_forward_hook(keep(block)) for block in wanted]
    try:
        with torch.inference_mode():
            for ids in texts.batches:
                model.base_model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    joined = {block: torch.cat(parts) for block, parts in collected.items()}
    return torch.stack([joined[n.block][:, n.index] for n in neurons], dim=1).cpu().numpy()


def take_apart(model: "PreTrainedModel", blocks: Sequence[Block], readings: Readings, neuron: Neuron) -> Parts:
    """Every contribution to a neuron's pre-activation at the read token of every sequence."""
    how = reader(model, blocks, neuron)
    sigma = _sigma(how.norm, stream(model, blocks, readings, neuron.block))[:, None]
    before = neuron.block + int(sequential(model))
    names, columns = [EMBEDDING], [readings.residuals[0] @ how.reads]
    single_names: list[str] = []
    single: list[Tensor] = []
    constant = torch.zeros((), dtype=how.reads.dtype, device=how.reads.device)
    for index, block in enumerate(blocks[:before]):
        along = components.writes(block.heads_out) @ how.reads
        heads = (readings.heads[index] * along).unflatten(1, (block.n_heads, -1))
        names += [f"L{index}H{head}" for head in range(block.n_heads)]
        columns += list(heads.sum(dim=2).T)
        constant = constant + _bias(block.heads_out, how.reads)
    for index, block in enumerate(blocks[: neuron.block]):
        each = readings.neurons[index] * (components.writes(block.neurons_out) @ how.reads)
        names.append(f"L{index}MLP")
        columns.append(each.sum(dim=1))
        single_names += [f"L{index}N{place}" for place in range(each.shape[1])]
        single.append(each)
        constant = constant + _bias(block.neurons_out, how.reads)
    names.append(BIAS)
    columns.append(constant.expand(len(sigma)) + how.offset * sigma[:, 0])
    every = torch.cat(single, dim=1) / sigma if single else torch.zeros(len(sigma), 0)
    return Parts(
        tuple(names), (torch.stack(columns, dim=1) / sigma).cpu().numpy(), tuple(single_names), every.cpu().numpy()
    )


def stream(
    model: "PreTrainedModel", blocks: Sequence[Block], readings: Readings, block: int
) -> Float[Tensor, "sequences d"]:
    """What the MLP of a block normalises, at the read token."""
    entering = readings.residuals[block]
    if not sequential(model):
        return entering
    written = blocks[block].heads_out
    return entering + readings.heads[block] @ components.writes(written) + _vector(written, entering)


def outputs(
    blocks: Sequence[Block], readings: Readings, names: Iterable[str]
) -> Iterator[Float[Tensor, "sequences d"]]:
    """What each named component (embedding, LxHy, LxMLP) adds to the stream at the read token."""
    for name in names:
        if name == EMBEDDING:
            yield readings.residuals[0]
            continue
        index = int(re.match(r"L(\d+)", name)[1])
        if name.endswith("MLP"):
            yield readings.neurons[index] @ components.writes(blocks[index].neurons_out)
        else:
            columns = blocks[index].columns(HEADS, [int(name.partition("H")[2])])
            yield readings.heads[index][:, columns] @ components.writes(blocks[index].heads_out)[columns]


def patched(
    how: Reader,
    neuron: Neuron,
    x: Float[Tensor, "sequences d"],
    replaced: Float[Tensor, "sequences d"],
    by: Int[np.ndarray, " sequences"],
) -> Float[np.ndarray, " sequences"]:
    """The pre-activation with one output in the stream exchanged for that of sequence `by`, on the direct path only."""
    with torch.inference_mode():
        changed = x + replaced[torch.as_tensor(by, device=x.device)] - replaced
        return how.into(how.norm(changed))[:, neuron.index].cpu().numpy()


# --- rows ----------------------------------------------------------------------------------------------------


def position_rows(
    model: "PreTrainedModel",
    blocks: Sequence[Block],
    design: Design,
    texts: Sequences,
    pairs: Sequence[tuple[Neuron, Neuron]],
    settings: Mapping[str, Any],
    confidence: float,
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Every neuron at one read position, and the chosen against the random ones."""
    visible = set(attribution.visible(design, texts))
    targets = [target for target in designs.targets(design, 2) if set(target.split("^")) <= visible]
    units, half = halves(design, settings["seed"])
    if not targets or len(units) < 2 * FEWEST_COUPLES:
        progress.logger("neurons").warning(
            "%s, %s: %d features can be read in %d couples of items; nothing is attributed below 1 and %d",
            design.name,
            site["position"],
            len(targets),
            len(units),
            2 * FEWEST_COUPLES,
        )
        return
    readings = components.read(model, blocks, texts)
    measured_at = [neuron for pair in pairs for neuron in pair]
    own = dict(zip(measured_at, pre_activations(model, blocks, texts, measured_at).T, strict=True)) if pairs else {}
    shares: dict[str, list[list[float]]] = {}
    for pair in pairs:
        found = []
        for neuron, control in zip(pair, ("none", RANDOM), strict=True):
            rows, share = neuron_rows(
                model,
                blocks,
                design,
                texts,
                readings,
                neuron,
                own[neuron],
                targets,
                half,
                settings["top"],
                confidence,
                site,
            )
            yield from ({**row, "control": control} for row in rows)
            found.append(share)
        for score in found[0]:
            shares.setdefault(score, []).append([found[0][score], found[1][score]])
    for score, values in shares.items():
        yield from _against_random(score, values, confidence, site)


def _against_random(
    score: str, values: Sequence[Sequence[float]], confidence: float, site: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Means over the chosen neurons and over the random ones, and of their differences, of pairs that both have a number."""
    measured = np.array(values, dtype=float).reshape(-1, 2)
    measured = measured[np.isfinite(measured).all(axis=1)]
    if len(measured) < 2:
        return
    row = {**site, "probe": "token_neurons", "n_groups": len(measured), "note": "mean over neurons, with t-interval"}
    mean = statistics.t_interval(measured, confidence)
    for place, control in enumerate(("none", RANDOM)):
        yield {**row, "control": control, "score": score, **_ends(mean, place)}
    difference = statistics.t_interval(measured[:, 0] - measured[:, 1], confidence)
    yield {**row, "score": f"{score}_above_random", "level": 0.0, **_ends(difference)}


def neuron_rows(
    model: "PreTrainedModel",
    blocks: Sequence[Block],
    design: Design,
    texts: Sequences,
    readings: Readings,
    neuron: Neuron,
    own: Float[np.ndarray, " sequences"],
    targets: Sequence[str],
    half: np.ndarray,
    top: int,
    confidence: float,
    site: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of one neuron, and its shares. own: its pre-activations. half [g]: where feature and components are chosen."""
    parts = take_apart(model, blocks, readings, neuron)
    error = float(np.abs(parts.whole.sum(axis=1) - own).max() / np.sqrt((own**2).mean()))
    if error > LARGEST_ERROR:
        raise UserError(
            f"{neuron}: contributions miss the pre-activation by {error:.1g} of its size, above {LARGEST_ERROR:g}; this "
            "architecture computes something between stream and neurons that is not known; leave it out of run.neurons"
        )
    row = {**site, "layer": neuron.block + 1, "probe": str(neuron), "n_groups": int((~half).sum())}
    rows = [{**row, "score": "attribution_error", "level": 0.0, "estimate": error}]
    member, sizes = _members(design)
    total_effects = statistics.walsh_contrasts(own[texts.of_text, None], design, targets)
    strengths = [_strength((member @ effect)[half, 0]) for effect in total_effects]
    target = targets[int(np.argmax(strengths))]
    contributions = np.concatenate([parts.whole, parts.single], axis=1)[texts.of_text]
    by_unit = member @ statistics.walsh_contrasts(contributions, design, [target])[0]
    n_whole = len(parts.names)
    row["target"] = target
    weights = _deletions(half)
    mean = (weights @ by_unit) / (weights @ sizes)[:, None]
    total = mean[:, :n_whole].sum(axis=1)
    rows.append({**row, "score": "effect", "level": 0.0, **_ends(attribution.jackknifed(total, confidence))})
    if not _known(total, confidence):
        note = "the feature that moved it most on one half has no effect on the other"
        rows.append({**row, "score": "share_of_top_5", "estimate": np.nan, "note": note})
        return rows, dict.fromkeys(SHARES, np.nan)
    selected = by_unit[half].sum(axis=0)
    direction = np.sign(selected[:n_whole].sum())
    names = np.array([*parts.names, *parts.single_names])
    movable = np.array([name != BIAS for name in parts.names])
    whole = np.flatnonzero(movable)[np.argsort(-(direction * selected[:n_whole])[movable], kind="stable")]
    largest = np.flatnonzero(movable)[np.argsort(-np.abs(selected[:n_whole])[movable], kind="stable")][:TOP]
    # The finest split: neurons in the place of the MLPs that they make up.
    fine = np.array([i for i, name in enumerate(names) if name != BIAS and not name.endswith("MLP")])
    fine = fine[np.argsort(-(direction * selected)[fine], kind="stable")]
    shares = {
        "share_of_top_5": mean[:, whole[:TOP]].sum(axis=1) / total,
        "share_of_top_5_single": mean[:, fine[:TOP]].sum(axis=1) / total,
        "mass_of_top_5": np.abs(mean[:, largest]).sum(axis=1) / np.abs(mean[:, :n_whole][:, movable]).sum(axis=1),
    }
    flips, flipped = _flips(design, texts, target)
    how, x = reader(model, blocks, neuron), stream(model, blocks, readings, neuron.block)
    listed = [str(names[i]) for i in whole[:TOP]]
    replaced = list(outputs(blocks, readings, listed))
    if flips is not None:
        sign = np.where(designs.parity(design, target), -1.0, 1.0)[flipped]
        units = _members(design, flipped)[0]
        moved = {"all": own[flips] - own, "together": patched(how, neuron, x, sum(replaced), flips) - own}
        moved |= {name: patched(how, neuron, x, out, flips) - own for name, out in zip(listed, replaced, strict=True)}
        by_couple = {name: units @ (sign * change[texts.of_text][flipped]) for name, change in moved.items()}
        counted = {name: weights @ values for name, values in by_couple.items()}
        shares["patched_share_of_top_5"] = counted["together"] / counted["all"]
        each = (weights @ units.sum(axis=1))[:, None]
        for name in listed[:top]:
            at = {**row, "probe": f"{neuron} < {name}", "score": "path_patched", "level": 0.0}
            rows.append({**at, **_ends(attribution.jackknifed(counted[name] / each[:, 0], confidence))})
    for score, draws in shares.items():
        chosen = {"share_of_top_5_single": fine[:TOP], "mass_of_top_5": largest}.get(score, whole[:TOP])
        note = "chosen on the other half: " + " ".join(names[chosen])
        rows.append({**row, "score": score, "note": note, **_ends(attribution.jackknifed(draws, confidence))})
    for place in [*whole[:top], *(i for i in fine[:top] if i not in set(whole[:top]))]:
        at = {**row, "probe": f"{neuron} < {names[place]}", "score": "contribution", "level": 0.0}
        rows.append({**at, **_ends(attribution.jackknifed(mean[:, place], confidence))})
    estimates = {score: float(draws[0]) for score, draws in shares.items()}
    return rows, dict.fromkeys(SHARES, np.nan) | estimates


def _flips(
    design: Design, texts: Sequences, target: str
) -> tuple[Int[np.ndarray, " sequences"] | None, Int[np.ndarray, " kept"]]:
    """For every sequence the one with the target's first factor flipped (itself where there is none), and the texts that
    have one."""
    partner = interference.counterfactuals(design, target.split("^")[0])
    kept = np.flatnonzero(partner >= 0)
    if not len(kept):
        return None, kept
    other = np.arange(len(texts.first_text))
    other[texts.of_text[kept]] = texts.of_text[partner[kept]]
    return other, kept


def _members(
    design: Design, kept: np.ndarray | None = None
) -> tuple[Float[np.ndarray, "g n"], Float[np.ndarray, " g"]]:
    """Which items (or, of the texts `kept`, which texts) belong to each couple, and the items of each."""
    couples = attribution.first_of(design.couples, design.items)
    units, of_item = np.unique(couples, return_inverse=True)
    sizes = np.bincount(of_item).astype(float)
    of_row = of_item if kept is None else np.searchsorted(units, design.couples[kept])
    return np.eye(len(units))[:, of_row], sizes


def halves(design: Design, seed: int) -> tuple[Int[np.ndarray, " g"], np.ndarray]:
    """The couples of items, ascending, and a random half of them, evenly from every stratum."""
    of_items = attribution.first_of(design.couples, design.items)
    couples, unit = np.unique(of_items, return_inverse=True)
    strata = attribution.first_of(attribution.first_of(design.strata, design.items), unit)
    return couples, interference.halves(strata, np.random.default_rng([seed, 2]))


def _deletions(half: np.ndarray) -> Float[np.ndarray, "draws g"]:
    """Weights of the couples of the other half: all of them, then without each in turn."""
    rest = np.flatnonzero(~half)
    weights = np.repeat((~half).astype(float)[None], 1 + len(rest), axis=0)
    weights[np.arange(1, 1 + len(rest)), rest] = 0
    return weights


def _strength(values: Float[np.ndarray, " g"]) -> float:
    return float(abs(values.mean()) / max(values.std(ddof=1), np.finfo(float).tiny))


def _known(draws: Float[np.ndarray, " draws"], confidence: float) -> bool:
    interval = attribution.jackknifed(draws, confidence)
    return bool(interval.lower > 0 or interval.upper < 0)


def _reads(
    model: "PreTrainedModel", blocks: Sequence[Block], index: int
) -> tuple[nn.Module, nn.Module, Float[Tensor, "N d"]]:
    """Normalisation and matrix in front of a block's neurons, and r_n of all of them."""
    kind = model.config.model_type
    if kind not in INPUTS:
        raise UserError(
            f"what neurons read is known for {', '.join(INPUTS)}, not for {kind!r}; leave this model out of run.neurons"
        )
    norm, into = (blocks[index].module.get_submodule(name) for name in INPUTS[kind])
    reads = components.writes(into).T * norm.weight.detach()
    return norm, into, reads - reads.mean(dim=1, keepdim=True) if _centres(norm) else reads


def _centres(norm: nn.Module) -> bool:
    """LayerNorm removes the mean, RMSNorm does not. UserError for any other."""
    if isinstance(norm, nn.LayerNorm):
        return True
    if hasattr(norm, "variance_epsilon"):
        return False
    raise UserError(f"{type(norm).__name__} is neither a LayerNorm nor an RMSNorm; leave this model out of run.neurons")


def _sigma(norm: nn.Module, x: Float[Tensor, "sequences d"]) -> Float[Tensor, " sequences"]:
    if _centres(norm):
        return (x.var(dim=1, unbiased=False) + norm.eps).sqrt()
    return (x.square().mean(dim=1) + norm.variance_epsilon).sqrt()


def _vector(module: nn.Module, like: Tensor) -> Tensor:
    """The bias of an output projection, 0 where it has none."""
    return (
        torch.zeros(like.shape[-1], dtype=like.dtype, device=like.device)
        if module.bias is None
        else module.bias.detach()
    )


def _bias(module: nn.Module, reads: Float[Tensor, " d"]) -> Float[Tensor, ""]:
    return _vector(module, reads) @ reads


def _ends(interval: statistics.Interval, place: int = 0) -> dict[str, float]:
    ends = (interval.estimate, interval.lower, interval.upper)
    return dict(zip(("estimate", "lower", "upper"), (float(np.ravel(end)[place]) for end in ends), strict=True))
