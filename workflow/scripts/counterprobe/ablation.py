"""Does the XOR of A and B die with the components that compute A? Knock them out, read again, probe again.

If A ⊕ B is a by-product of how A is computed (Hoagy, on Marks 2024,
https://www.lesswrong.com/posts/hjJXCn9GsskysDceS: "zero-out or max-ent the neurons/attention heads that are important for
calculating the A feature"), it should go as fast as A goes. If the model represents the XOR on its own, it stays.

Components of a kind (heads, neurons; below the site) are ranked by what they do for A's read-out, u_A · d_A at the site:
first by their exact direct contribution (`attribution`), then the `verified` first of that list by patching: the loss of
u_A · d_A when the component alone is mean-ablated, which counts what later blocks make of it. The rank correlation of the
two is a row of the table. The first k are then ablated at every token, for every k of a sweep, in four ways:

    zero         0
    mean         the component's mean over texts at that distance from the read token
    resample     what it outputs in another text, one text for all components
    max_entropy  Gaussian with that mean and variance, coordinate by coordinate: of all laws with these, the one that
                 says least

and A, B and A ⊕ B are probed anew under the held-out folds of the first protocol. Beside: as many components of the
same kind in the same blocks, drawn at random, several times.

    excess kept of a target = (accuracy after − chance) / (accuracy before − chance)

    statistic               = mean over the sweep of (excess kept by A ⊕ B − excess kept by A)

Positive control: an XOR that the model needs (truth = negated ⊕ match) while its factor is ablated.

Intervals: two-way bootstrap over items and carriers of the ratio's linearisation, r + ((c_k − chance) − r (c_0 − chance))
/ (mean c_0 − chance) text by text, whose mean is the ratio r: paired, and a mean like any other. It is not to be had
where the accuracy before is not above chance: excess kept is NaN there, with a note.

Pitfalls: the ranking uses labels of the texts that are probed later (a choice of components, not of a probe). Penalties are
those the inner folds chose before ablation: probing anew costs one fit. Ablating at every token also removes
what OTHER tokens tell the read one; a component is a part of the model, not of a token. Zero is far from what a
component ever outputs: where zero and mean disagree, believe the mean.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from counterprobe import (
    attribution,
    checkpoints,
    components,
    designs,
    extraction,
    language_model,
    probe_grid,
    probes,
    progress,
    splits,
    statistics,
    tables,
    tokenization,
)
from counterprobe.components import Block, Sequences, Trace
from counterprobe.designs import Design
from counterprobe.progress import UserError
from counterprobe.revisions import step_of
from counterprobe.splits import Fold
from counterprobe.statistics import Interval

MODES = ("zero", "mean", "resample", "max_entropy")
TOP, RANDOM = "none", "random_components"
UNDEFINED = "not decodable before ablation: nothing that could be kept"

# (block, component) pairs.
Chosen = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Outputs:
    """What one kind of component of one block outputs in the design, aligned at the read token (the last column).

    values [sequences, tokens, width]: shorter sequences repeat their first token on the left. mean, sd: over texts, by
    distance from the read token.
    """

    values: Float[Tensor, "sequences tokens width"]
    mean: Float[Tensor, "tokens width"]
    sd: Float[Tensor, "tokens width"]


@dataclass(frozen=True)
class Subject:
    """A model below one site, run once on one design: everything that ablations start from."""

    blocks: tuple[Block, ...]
    site: int
    texts: Sequences
    traces: tuple[Trace, ...]
    outputs: Mapping[tuple[int, str], Outputs]

    def residual(self) -> Float[Tensor, "sequences d"]:
        """The read token at the site, nothing ablated."""
        return torch.cat([run.entering[self.site][:, -1] for run in self.traces])


@dataclass(frozen=True)
class Ranking:
    """Components by their effect on A's read-out at a layer, strongest first.

    agreement: rank correlation of attribution and patching over those that were patched (verified of them).
    """

    order: tuple[tuple[int, int], ...]
    layer: int
    agreement: float
    verified: int


@dataclass(frozen=True)
class Probing:
    """Labels [s, K] of the distinct sequences, their folds, the penalties chosen before ablation, and who was right then."""

    targets: tuple[str, ...]
    labels: Bool[np.ndarray, "s K"]
    folds: tuple[Fold, ...]
    penalties: Float[np.ndarray, "F K"]
    correct: Float[np.ndarray, "s K"]


def measure(
    checkpoint: str | Path, design: Design, spec: Mapping[str, Any], cell: Mapping[str, str], *, device: str
) -> pd.DataFrame:
    """Accuracies and excess kept of one model at the primary position.

    spec: `ablation`, `probes` (penalties, folds, seed), `statistics`, `activations` (primary_position, primary_bos,
    token_budget), `design.protocols`, `design.unreadable`.
    """
    source = checkpoints.open_checkpoint(checkpoint)
    tokenizer = tokenization.load_tokenizer(source)
    settings, reading = spec["ablation"], spec["activations"]
    design = extraction.readable(design, tokenizer, spec["design"]["unreadable"])
    design = designs.thinned(design, settings["items"], np.random.default_rng(settings["seed"]))
    model = language_model.load(source, device=device)
    texts = components.sequences(
        model,
        tokenizer,
        design,
        reading["primary_position"],
        bos=reading["primary_bos"],
        token_budget=reading["token_budget"],
    )
    subject = prepare(components.blocks_of(model), model, texts, settings["layer"])
    site = {
        **tables.NOT_APPLICABLE,
        **cell,
        "step": step_of(cell["revision"]),
        "position": reading["primary_position"],
        "bos": reading["primary_bos"],
        "layer": subject.site,
        "representation": "ablated",
    }
    return tables.frame(subject_rows(subject, design, spec, site))


def prepare(blocks: Sequence[Block], model: torch.nn.Module, texts: Sequences, layer: int | str) -> Subject:
    """The clean run. `layer`: the residual after so many blocks, or "last". Raises UserError for one that does not
    exist."""
    site = len(blocks) if layer == "last" else int(layer)
    if not 1 <= site <= len(blocks):
        raise UserError(
            f"config, ablation.layer: {layer}; choose from 1 to {len(blocks)} (last), the blocks of this model"
        )
    traces = tuple(components.trace(model, blocks, ids, read_only=False) for ids in texts.batches)
    outputs = {
        (block, kind): _outputs([run.of(kind)[block] for run in traces])
        for block, kind in itertools.product(range(site), components.KINDS)
    }
    return Subject(tuple(blocks), site, texts, traces, outputs)


def subject_rows(
    subject: Subject, design: Design, spec: Mapping[str, Any], site: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Every row of one model, or none where the design has no pair that can be read and held out here."""
    settings = spec["ablation"]
    pairs = pairs_of(design, attribution.visible(design, subject.texts))
    protocols = {"n_folds": spec["probes"]["outer_folds"], "seed": spec["probes"]["seed"]}
    protocol = splits.primary_protocol(design, spec["design"]["protocols"], **protocols)
    if not pairs or protocol is None:
        reason = "nothing can be held out" if pairs else "no pair of its factors can be read at this position"
        progress.logger("ablation").warning("%s: %s, so nothing is ablated", design.name, reason)
        return
    folds = splits.folds(design, protocol, spec["probes"]["inner_folds"], **protocols)
    probing = probe_before(subject, design, pairs, folds, spec["probes"]["penalties"])
    site = {**site, "protocol": protocol}
    for number, (a, b) in enumerate(pairs):
        ranks = rank(subject, design, a, settings["verified"])
        runs = sweep(subject, probing, (a, b), ranks, settings, [settings["seed"], number])
        names = (a, b, designs.canonical(design, f"{a}^{b}"))
        row = {**site, **_sample(probing, subject.texts)}
        for kind in components.KINDS:
            agreement = {"score": "attribution_patching_spearman", "estimate": ranks[kind].agreement, "level": 0.0}
            note = f"over the {ranks[kind].verified} patched; read out at layer {ranks[kind].layer}"
            yield {**row, **agreement, "target": a, "probe": describe(kind, "mean", "ranking", a), "note": note}
        totals = {kind: len(ranking.order) for kind, ranking in ranks.items()}
        yield from pair_rows(probing, design, subject, names, runs, totals, spec["statistics"], settings["seed"], row)


def pairs_of(design: Design, visible: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(A, B): the primary pair, then the positive control: of a needed XOR of two factors, the one outside that pair."""
    wanted = [design.primary]
    for target in design.needed:
        factors = target.split("^")
        if len(factors) == 2 and set(factors) != set(design.primary):
            a = next((name for name in factors if name not in design.primary), factors[-1])
            (b,) = set(factors) - {a}
            wanted.append((a, b))
    return tuple(pair for pair in wanted if set(pair) <= set(visible))


# --- which components ---------------------------------------------------------------------------------------


def rank(subject: Subject, design: Design, feature: str, verified: int) -> dict[str, Ranking]:
    """Components of either kind by direct contribution, the first `verified` of them by what ablating them costs A.

    At the site, or, where A has no effect there any more (match, once truth has been worked out), at the last layer
    before it where A has one: then only components below that layer are ranked.
    """
    found = components.Readings(
        residuals=tuple(_joined(subject.traces, "entering", layer) for layer in range(subject.site + 1)),
        heads=tuple(_joined(subject.traces, components.HEADS, block) for block in range(subject.site)),
        neurons=tuple(_joined(subject.traces, components.NEURONS, block) for block in range(subject.site)),
    )
    measured = attribution.contrasts(found, design, subject.texts, [feature])
    there = [layer for layer in range(1, subject.site + 1) if attribution.has_effect(measured, feature, layer)]
    layer = there[-1] if there else subject.site
    at = replace(subject, site=layer)
    whole = np.ones((1, len(measured.sizes)))
    direct = attribution.profile(measured, subject.blocks, feature, layer, whole)[0]
    effect = measured.residuals[layer][feature].sum(axis=0) / measured.sizes.sum()
    unit = effect / max(float(np.linalg.norm(effect)), np.finfo(float).tiny)

    def read_out(residual: Tensor) -> float:
        along = residual.double().cpu().numpy()[subject.texts.of_text] @ unit
        return float(statistics.walsh_contrasts(along[:, None], design, [feature])[0].mean())

    before = read_out(at.residual())
    every = [
        (block, kind, index)
        for block in range(layer)
        for kind in components.KINDS
        for index in range(subject.blocks[block].count(kind))
    ]
    rankings = {}
    for kind in components.KINDS:
        candidates = [
            (value, (block, index)) for value, (block, its, index) in zip(direct, every, strict=True) if its == kind
        ]
        candidates.sort(key=lambda candidate: -candidate[0])
        tried, rest = candidates[:verified], candidates[verified:]
        lost = {one: before - read_out(ablated(at, kind, [one], "mean", 0)) for _, one in tried}
        order = (*sorted(lost, key=lambda one: -lost[one]), *(one for _, one in rest))
        values = [value for value, _ in tried]
        agreement = spearmanr(values, list(lost.values())).statistic if len(lost) > 2 else np.nan
        rankings[kind] = Ranking(order, layer, float(agreement), len(lost))
    return rankings


def counts(sweep_of: Sequence[int | float], total: int) -> tuple[int, ...]:
    """The sweep as numbers of components: whole numbers as they are, shares below 1 of the total, at least one."""
    wanted = {max(1, round(k * total)) if k < 1 else int(k) for k in sweep_of}
    return tuple(sorted(k for k in wanted if k <= total))


def alike(chosen: Chosen, kind: str, blocks: Sequence[Block], rng: np.random.Generator) -> list[tuple[int, int]]:
    """As many components of the kind in every block as `chosen` has there, at random."""
    drawn = []
    for block in sorted({block for block, _ in chosen}):
        size = sum(1 for place, _ in chosen if place == block)
        drawn += [(block, int(index)) for index in rng.choice(blocks[block].count(kind), size, replace=False)]
    return drawn


# --- knocking them out --------------------------------------------------------------------------------------


def ablated(subject: Subject, kind: str, chosen: Chosen, mode: str, seed: int) -> Float[Tensor, "sequences d"]:
    """The read token at the site with the chosen components ablated at every token."""
    by_block: dict[int, list[int]] = {}
    for block, index in chosen:
        by_block.setdefault(block, []).append(index)
    first = min(by_block)
    columns = {block: subject.blocks[block].columns(kind, sorted(indices)) for block, indices in by_block.items()}
    generator = torch.Generator().manual_seed(seed)
    n = len(subject.texts.first_text)
    donors = torch.randperm(n, generator=generator)
    residuals = []
    for run, span in zip(subject.traces, subject.texts.spans(), strict=True):
        length = run.entering[0].shape[1]
        values = {
            (block, kind): (
                which,
                _replacement(subject.outputs[block, kind], which, mode, donors[span], length, generator),
            )
            for block, which in columns.items()
        }
        with components.replacing(subject.blocks, values):
            residuals.append(components.resume(subject.blocks, run, first, subject.site))
    return torch.cat(residuals)


def _replacement(
    outputs: Outputs,
    columns: Int[Tensor, " width"],
    mode: str,
    donors: Int[Tensor, " batch"],
    length: int,
    generator: torch.Generator,
) -> Float[Tensor, "*_ width"]:
    if mode == "zero":
        return outputs.mean.new_zeros(len(columns))
    if mode == "resample":
        return outputs.values[donors][:, -length:][..., columns]
    mean = outputs.mean[-length:][:, columns]
    if mode == "mean":
        return mean
    noise = torch.randn((len(donors), *mean.shape), generator=generator).to(mean.device)
    return mean + outputs.sd[-length:][:, columns] * noise


def _outputs(batches: Sequence[Float[Tensor, "_ _ width"]]) -> Outputs:
    longest = max(level.shape[1] for level in batches)
    padded = torch.cat(
        [torch.cat([level[:, :1].expand(-1, longest - level.shape[1], -1), level], dim=1) for level in batches]
    )
    real = torch.cat(
        [
            (torch.arange(longest, device=level.device) >= longest - level.shape[1]).expand(len(level), -1)
            for level in batches
        ]
    )[..., None]
    count = real.sum(dim=0)
    mean = (padded * real).sum(dim=0) / count
    variance = (((padded - mean) ** 2) * real).sum(dim=0) / count
    return Outputs(padded, mean, variance.sqrt())


# --- reading again ------------------------------------------------------------------------------------------


def probe_before(
    subject: Subject,
    design: Design,
    pairs: Sequence[tuple[str, str]],
    folds: Sequence[Fold],
    penalties: Sequence[float],
) -> Probing:
    """Choose penalties on the inner folds and score the held-out texts, nothing ablated.

    Equal beginnings are one text here: what follows the read token cannot be seen.
    """
    named = (
        *dict.fromkeys(itertools.chain.from_iterable(pairs)),
        *(designs.canonical(design, "^".join(p)) for p in pairs),
    )
    labels = np.stack([designs.parity(design, name) for name in named], axis=1)[subject.texts.first_text]
    number = np.full(len(design.texts), -1)
    number[subject.texts.first_text] = np.arange(len(subject.texts.first_text))

    def of(rows: Int[np.ndarray, " _"]) -> Int[np.ndarray, " _"]:
        return number[rows][number[rows] >= 0]

    merged = tuple(
        Fold(of(fold.train), of(fold.test), tuple((of(train), of(valid)) for train, valid in fold.inner))
        for fold in folds
    )
    held_out = probe_grid.cross_validate(subject.residual(), labels, merged, penalties, probe_grid.REFERENCE)
    chosen = Probing(tuple(named), labels, merged, held_out.penalties, held_out.correct)
    # Before and after are compared text by text, so both are fitted in the same way.
    return replace(chosen, correct=probe_after(subject.residual(), chosen, named))


def probe_after(residual: Float[Tensor, "s d"], probing: Probing, targets: Sequence[str]) -> Float[np.ndarray, "s T"]:
    """Who is right among the held-out texts (1, 0, ½), with the penalties that were chosen before.

    All folds are one batched problem, in which a fold's own texts have weight 0. Activations are standardised by all
    texts, which no label has a part in.
    """
    columns = [probing.targets.index(target) for target in targets]
    labels = torch.as_tensor(probing.labels[:, columns], device=residual.device)
    n_folds = len(probing.folds)
    train = torch.zeros((len(labels), n_folds), dtype=torch.bool, device=residual.device)
    for place, fold in enumerate(probing.folds):
        train[torch.as_tensor(fold.train, device=residual.device), place] = True
    fit = probes.logistic(
        residual,
        labels.repeat(1, n_folds),
        torch.as_tensor(probing.penalties[:, columns].ravel(), device=residual.device),
        weights=train.repeat_interleave(len(columns), dim=1),
    )
    scored = probes.score_texts(fit, residual, labels.repeat(1, n_folds)).correct.cpu().numpy()
    correct = np.full(labels.shape, np.nan)
    for fold, found in zip(probing.folds, np.split(scored, n_folds, axis=1), strict=True):
        correct[fold.test] = found[fold.test]
    return correct


def sweep(
    subject: Subject,
    probing: Probing,
    pair: tuple[str, str],
    ranks: Mapping[str, Ranking],
    settings: Mapping[str, Any],
    seed: Sequence[int],
) -> dict[tuple[str, str, int, str], Float[np.ndarray, "s 3"]]:
    """(kind, mode, k, top or random) -> who is right about A, B and A ⊕ B; of random sets the mean over the sets."""
    targets = (*pair, next(t for t in probing.targets if set(t.split("^")) == set(pair)))
    jobs = [
        (kind, k, mode)
        for kind in components.KINDS
        for k in counts(settings["k"], len(ranks[kind].order))
        for mode in settings["modes"]
    ]
    found = {}
    for kind, k, mode in progress.bar(jobs, label=f"ablation of {pair[0]}"):
        top = ranks[kind].order[:k]
        found[kind, mode, k, TOP] = probe_after(ablated(subject, kind, top, mode, settings["seed"]), probing, targets)
        # The same random sets for every mode.
        rng = np.random.default_rng([*seed, components.KINDS.index(kind), k])
        sets = [alike(top, kind, subject.blocks, rng) for _ in range(settings["random_sets"])]
        after = [
            probe_after(ablated(subject, kind, chosen, mode, settings["seed"] + 1 + index), probing, targets)
            for index, chosen in enumerate(sets)
        ]
        found[kind, mode, k, RANDOM] = np.mean(after, axis=0)
    return found


# --- numbers ------------------------------------------------------------------------------------------------


def describe(kind: str, mode: str, k: int | str, feature: str) -> str:
    """The `probe` of a row: what was ablated, how, how many, and whose components."""
    return f"{kind}.{mode}.{k}.{feature}"


def pair_rows(
    probing: Probing,
    design: Design,
    subject: Subject,
    names: tuple[str, str, str],
    runs: Mapping[tuple[str, str, int, str], Float[np.ndarray, "s 3"]],
    totals: Mapping[str, int],
    settings: Mapping[str, Any],
    seed: int,
    row: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Accuracy and excess kept for every run, and the statistic over the sweep, for one pair (A, B, A ⊕ B)."""
    first = subject.texts.first_text
    tested = ~np.isnan(probing.correct).any(axis=1)
    items, carriers = statistics.inference_units(design, names[2])
    items, carriers = items[first][tested], None if carriers is None else carriers[first][tested]
    weights = statistics.two_way_weights(
        items, carriers, settings["resamples"], np.random.default_rng(seed), design.strata[first][tested]
    )
    units = statistics.fewest_units(items, carriers)
    row = {**row, "n_groups": units}

    def interval(values: Float[np.ndarray, "s K"]) -> Interval:
        return statistics.bootstrap(values, weights, settings["confidence"], units)

    columns = [probing.targets.index(name) for name in names]
    share = probing.labels[:, columns].mean(axis=0)
    chance = np.maximum(share, 1 - share)
    before = probing.correct[tested][:, columns]
    clean = interval(before)
    decodable = clean.lower > chance
    for place, name in enumerate(names):
        at = {**row, "target": name, "probe": describe("none", "none", 0, names[0]), "score": "accuracy"}
        yield {**at, "level": chance[place], **_ends(clean, place)}
    linear = {key: linearised(correct[tested], before, chance) for key, correct in runs.items()}
    for (kind, mode, k, control), correct in runs.items():
        at = {**row, "probe": describe(kind, mode, k, names[0]), "control": control}
        accuracy, kept = interval(correct[tested]), interval(linear[kind, mode, k, control])
        for place, name in enumerate(names):
            here = {**at, "target": name, "note": f"{k} of {totals[kind]} {kind}"}
            yield {**here, "score": "accuracy", "level": chance[place], **_ends(accuracy, place)}
            yield {**here, "score": "excess_kept", "level": 1.0, **_known(kept, place, bool(decodable[place]))}
    for kind, mode in dict.fromkeys((kind, mode) for kind, mode, *_ in runs):
        swept = {
            control: np.mean(
                [values for key, values in linear.items() if (key[0], key[1], key[3]) == (kind, mode, control)], axis=0
            )
            for control in (TOP, RANDOM)
        }
        at = {**row, "target": names[2], "probe": describe(kind, mode, "sweep", names[0]), "level": 0.0}
        known = bool(decodable[0] and decodable[2])
        for control, values in swept.items():
            difference = interval(values[:, [2]] - values[:, [0]])
            yield {**at, "control": control, "score": "excess_kept_difference", **_known(difference, 0, known)}
        margin = interval(swept[RANDOM][:, [2]] - swept[TOP][:, [2]])
        yield {**at, "score": "excess_kept_below_random", **_known(margin, 0, bool(decodable[2]))}


def linearised(
    after: Float[np.ndarray, "s T"], before: Float[np.ndarray, "s T"], chance: Float[np.ndarray, " T"]
) -> Float[np.ndarray, "s T"]:
    """Numbers text by text whose mean is the excess kept and whose spread is that of the ratio, to first order.

    Meaningless where nothing was in excess before, and finite all the same: such columns are never reported.
    """
    excess = np.maximum(before.mean(axis=0) - chance, 1 / len(before))
    kept = (after.mean(axis=0) - chance) / excess
    return kept + ((after - chance) - kept * (before - chance)) / excess


def _known(interval: Interval, place: int, known: bool) -> dict[str, Any]:
    if known:
        return _ends(interval, place)
    nothing = float("nan")
    return {"estimate": nothing, "lower": nothing, "upper": nothing, "note": UNDEFINED}


def _sample(probing: Probing, texts: Sequences) -> dict[str, int]:
    return {"n_texts": int((~np.isnan(probing.correct).any(axis=1)).sum()), "n_groups": len(texts.first_text)}


def _joined(traces: Sequence[Trace], name: str, level: int) -> Float[Tensor, "sequences width"]:
    return torch.cat([getattr(run, name)[level][:, -1] for run in traces])


def _ends(interval: Interval, place: int) -> dict[str, float]:
    return {
        "estimate": float(interval.estimate[place]),
        "lower": float(interval.lower[place]),
        "upper": float(interval.upper[place]),
    }
