"""What a dictionary is worth, beside a random dictionary and beside the same dictionary of randomised weights.

Reconstruction on texts that no dictionary was fitted to, with x the activations of their tokens:

    fvu              Σ ‖x − x̂‖² / Σ ‖x − mean x‖²                      l0   mean number of live latents
    kl, loss         of each replacement (module `replacement`), nats a token
    kl_ratio         KL of x̂ over KL of a random error of the same length (C48: 2 to 4.5 against isotropic ones, published)
    loss_recovered   1 − (loss of x̂ − loss) / (loss of the mean − loss)

What the latents are about:

    token_entropy    entropy in bits of the token on which a latent fires, mean over latents that fire
    single_token     share of them with nine tenths of their firings on one token (C31)
    silent           share of latents that never fire
    sparse_probe     held-out accuracy for a factor from the n latents whose class means differ most in the training part
                     (k-sparse probing: Gurnee et al. 2023, arXiv 2305.01610), classified by LDA; n is in the column `at`
    nearest_cosine   mean over decoder rows of the largest |cosine| with another row; `level`: the same for random rows (C35)
    mmcs             mean over rows of the largest |cosine| with a row of another seed's dictionary; `level`: random rows
    fvu_dense        of x's part in the span of the mean activations by position, and fvu_rest of the remaining part (C51)
    frequency        Spearman correlation between a token's frequency and its mean KL gap, reconstruction − isotropic (C49)

and the responses of `sensitivity` at the primary read position.

Every row has two baselines (module `dictionary_table`).

Intervals: bootstrap over couples of items, of ratios where the number is one. Pitfall: loss_recovered means nothing where
the mean is as good as x (random models), which is why the increase of the loss stands beside it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from counterprobe import (
    capacity,
    designs,
    dictionaries,
    dictionary_fitting,
    dictionary_table,
    dictionary_training,
    extraction,
    manifest,
    probe_grid,
    progress,
    replacement,
    sensitivity,
    splits,
    statistics,
    streaming_ica,
    tokenization,
)
from counterprobe.designs import Design
from counterprobe.dictionaries import Dictionary
from counterprobe.dictionary_fitting import DESIGN, Fitted
from counterprobe.dictionary_table import BASES, FROZEN, RANDOM, STANDS_IN, TRAINED, UNKNOWN, ratio
from counterprobe.replacement import Replacing, Surroundings
from counterprobe.revisions import step_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SINGLE = 0.9
# Tokens that per-latent scales are fitted to, evenly from all.
ROWS_OF_SCALES = 4096


def measure(
    checkpoint: str | Path,
    design: Design,
    folders: Sequence[str | Path],
    spec: Mapping[str, Any],
    cell: Mapping[str, str],
    *,
    device: str,
    pretrained: Sequence[str | Path] = (),
) -> pd.DataFrame:
    """Every number of one model at one revision, with the columns of `dictionary_table`.

    folders: manifests of the dictionaries under trained weights, then under each rung. pretrained: manifests of
    dictionaries that others made, each in a folder of its name. spec: `dictionaries`, `activations`
    (primary_position, primary_bos, token_budget), `probes` (folds, seed), `statistics`, `design` (protocols, unreadable).
    """
    found: list[dict[str, Any]] = []
    published: list[Fitted] = []
    for folder in folders:
        weights = manifest.read(folder)["content"]["weights"]
        model, tokenizer = dictionary_fitting.open_model(checkpoint, weights, device=device)
        here = extraction.readable(design, tokenizer, spec["design"]["unreadable"])
        width = model.get_input_embeddings().weight.shape[1]
        if weights == TRAINED:
            published = [
                dictionary_fitting.published(path, Path(path).parent.name, model, tokenizer, here, spec)
                for path in pretrained
            ]
        fitted = [
            replace(one, dictionary=one.dictionary.to(device))
            for one in (*dictionary_fitting.open_folder(folder, width=width), *published)
        ]
        site = {**cell, "step": step_of(cell["revision"]), "weights": weights}
        found += of_weights(model, tokenizer, here, fitted, spec, site)
    return dictionary_table.compared(pd.DataFrame(found))


def of_weights(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    design: Design,
    fitted: Sequence[Fitted],
    spec: Mapping[str, Any],
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Rows of one set of weights, without baselines."""
    settings = spec["dictionaries"]
    bos, first = replacement.settings_of(spec)
    scored = replacement.split_texts(design, settings["held_out"], settings["seed"])
    kept = np.flatnonzero(scored)
    shown = designs.without(design, np.flatnonzero(~scored).tolist())
    shown = designs.thinned(shown, settings["items"], np.random.default_rng([settings["seed"], 5]))
    kept = kept[np.isin([design.texts[i] for i in kept], shown.texts)]
    for layer in sorted({one.layer for one in fitted}):
        for inputs in sorted({one.inputs for one in fitted if one.layer == layer}):
            those = [one.dictionary for one in fitted if (one.layer, one.inputs) == (layer, inputs)]
            texts = dictionary_fitting.batches(tokenizer, design, model, spec, inputs, kept)
            whole = Replacing(model, texts, layer, first=first)
            # What random errors are drawn from is not what is scored.
            other = dictionary_fitting.batches(tokenizer, design, model, spec, inputs, np.flatnonzero(~scored))
            train = replacement.read(model, other, layer, first=first)
            measured = streaming_ica.moments(streaming_ica.chunked(train.x))
            around = replacement.surroundings(train, measured)
            those = dictionary_fitting.with_random(those, measured.mean)
            row = {**site, "bos": bos, "layer": layer, "inputs": inputs}
            scoring = _Scoring(design, whole, around, spec, row)
            for dictionary in those:
                yield from scoring.reconstruction(dictionary)
                yield from scoring.latents(dictionary, those)
                if inputs == DESIGN and dictionary.seed == 0:
                    yield from scoring.replaced(dictionary, train.x)
            if inputs != DESIGN:
                continue
            yield from probed(model, tokenizer, design, those, layer, spec, row)
            yield from moved(model, tokenizer, design, kept, those, layer, around, spec, row, scoring)


class _Scoring:
    """Held-out tokens of some texts at one layer, and what they say of dictionaries."""

    def __init__(
        self,
        design: Design,
        whole: Replacing,
        around: Surroundings,
        spec: Mapping[str, Any],
        site: Mapping[str, Any],
    ) -> None:
        self.whole, self.around, self.site, self.settings = whole, around, site, spec["dictionaries"]
        self.confidence = spec["statistics"]["confidence"]
        tokens = whole.tokens
        rng = np.random.default_rng([self.settings["seed"], 6])
        self.unit_of, self.weights = resampled(design, tokens.texts, spec["statistics"]["resamples"], rng)
        self.n_units = self.weights.shape[1]

    def row(
        self, dictionary: Dictionary, score: str, value: Mapping[str, float] | float, **more: Any
    ) -> dict[str, Any]:
        ends = value if isinstance(value, Mapping) else {"estimate": float(value), "lower": UNKNOWN, "upper": UNKNOWN}
        return {
            **self.site,
            "dictionary": dictionary.name,
            "size": dictionary.size,
            "k": dictionary.k,
            "seed": dictionary.seed,
            "kind": "none",
            "target": "none",
            "at": 0.0,
            "score": score,
            "level": UNKNOWN,
            **ends,
            "n_tokens": len(self.whole.tokens.x),
            "n_groups": self.n_units,
            "note": dictionary.note,
            **more,
        }

    def generator(self, *parts: Any) -> torch.Generator:
        """Draws that do not depend on what else is measured, and are the same under every kind of weights."""
        return torch.Generator().manual_seed(zlib.crc32(repr((self.settings["seed"], *parts)).encode()))

    def ratio(self, over: np.ndarray, under: np.ndarray) -> dict[str, float]:
        """Σ over / Σ under (tokens) with its interval over couples."""
        parts = [np.bincount(self.unit_of, np.asarray(v, float), self.n_units) for v in (over, under)]
        return ratio(*parts, self.weights, self.confidence)

    def mean(self, values: np.ndarray) -> dict[str, float]:
        known = np.isfinite(values)
        return self.ratio(np.where(known, values, 0.0), known)

    def reconstruction(self, dictionary: Dictionary) -> Iterator[dict[str, Any]]:
        x = dictionary.input(self.whole.tokens.x)
        error = dictionary.reconstruct(x) - x
        centred = x - x.mean(0)
        places = self.around.places
        yield self.row(dictionary, "fvu", self.ratio(_squares(error), _squares(centred)))
        inside, spread = error @ places.T, centred @ places.T
        yield self.row(dictionary, "fvu_dense", self.ratio(_squares(inside), _squares(spread)))
        left, right = (np.maximum(_squares(a) - _squares(b), 0) for a, b in ((error, inside), (centred, spread)))
        yield self.row(dictionary, "fvu_rest", self.ratio(left, right))

    def latents(self, dictionary: Dictionary, those: Sequence[Dictionary]) -> Iterator[dict[str, Any]]:
        counts, live = firings(dictionary, self.whole.tokens.x, self.whole.tokens.ids)
        yield self.row(dictionary, "l0", self.mean(live))
        total = counts.sum(1)
        fires = total > 0
        yield self.row(dictionary, "silent", 1 - fires.mean())
        if fires.any():
            shares = counts[fires] / total[fires, None]
            entropy = -np.sum(shares * np.log2(np.maximum(shares, np.finfo(float).tiny)), axis=1)
            yield self.row(dictionary, "token_entropy", entropy.mean())
            yield self.row(dictionary, "single_token", (shares.max(1) >= SINGLE).mean())
        rows = directions_of(dictionary)
        random = dictionaries.unit_rows(len(rows), dictionary.width, 999_983).to(rows.device)
        level = nearest_cosine(random)
        yield self.row(dictionary, "nearest_cosine", nearest_cosine(rows), level=level)
        siblings = [other for other in those if _like(other) == _like(dictionary) and other.seed != dictionary.seed]
        if siblings:
            value = np.mean([float(dictionary_training.best_match(rows, other.decoder).mean()) for other in siblings])
            level = float(dictionary_training.best_match(rows, random).mean())
            yield self.row(dictionary, "mmcs", value, level=level)

    def replaced(self, dictionary: Dictionary, train: Float[Tensor, "n d"]) -> Iterator[dict[str, Any]]:
        scales = replacement.fitted_scales(dictionary, train[:: -(-len(train) // ROWS_OF_SCALES)])
        found = {
            kind: self.whole.said(x)
            for kind, x in replacement.replacements(
                self.whole.tokens.x, dictionary, self.around, scales, self.generator("replaced")
            )
        }
        for kind, outcome in found.items():
            yield self.row(dictionary, "kl", self.mean(outcome.kl), kind=kind, level=0.0)
            yield self.row(dictionary, "loss", self.mean(outcome.loss), kind=kind, level=0.0)
        own = found["reconstruction"]
        for kind in ("isotropic", "covariance", "mixture", "norm_only", "fitted_scales", "places_restored", "theta"):
            over, under = (
                (own, found[kind]) if kind in ("isotropic", "covariance", "mixture", "theta") else (found[kind], own)
            )
            yield self.row(dictionary, "kl_ratio", self.ratio(over.kl, under.kl), kind=kind, level=1.0)
        known = np.isfinite(own.loss)
        lost = self.ratio(np.where(known, own.loss, 0), np.where(known, found["mean"].loss, 0))
        kept = {"estimate": 1 - lost["estimate"], "lower": 1 - lost["upper"], "upper": 1 - lost["lower"]}
        yield self.row(dictionary, "loss_recovered", kept, kind="reconstruction")
        gap = own.kl - found["isotropic"].kl
        tokens, place = np.unique(self.whole.tokens.ids, return_inverse=True)
        often = np.bincount(place)
        if len(tokens) > 3 and len(np.unique(often)) > 1:
            value = rank_correlation(often, np.bincount(place, gap) / often, self.confidence)
            yield self.row(dictionary, "frequency", value, level=0.0)


def rank_correlation(x: np.ndarray, y: np.ndarray, confidence: float) -> dict[str, float]:
    """Spearman's correlation of more than three pairs, with its interval by Fisher's z.

    Standard error of z: √((1 + ρ²/2) / (n − 3)), Bonett and Wright 2000, Psychometrika 65:23.
    """
    rho = float(stats.spearmanr(x, y).statistic)
    half = stats.norm.ppf((1 + confidence) / 2) * np.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    # Perfect order has no finite z; its interval is the point.
    z = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    lower, upper = np.tanh([z - half, z + half])
    return {"estimate": rho, "lower": min(float(lower), rho), "upper": max(float(upper), rho)}


def resampled(
    design: Design, texts: Int[np.ndarray, " n"], resamples: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "R u"]]:
    """The couple of items that each of these texts belongs to, and the weights of couples; no draws from a single one."""
    couples, unit_of = np.unique(design.couples[texts], return_inverse=True)
    units = np.arange(len(couples))
    if len(couples) < 2:
        return unit_of, np.zeros((0, 1), np.float32)
    strata = np.array([design.strata[design.couples == couple][0] for couple in couples])
    if np.unique(strata, return_counts=True)[1].min() < 2:
        # A topic of one couple would never vary.
        strata = np.zeros_like(strata)
    return unit_of, statistics.two_way_weights(units, None, resamples, rng, strata)


def firings(
    dictionary: Dictionary, x: Float[Tensor, "n d"], ids: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "h tokens"], Int[np.ndarray, " n"]]:
    """How often each latent fires on each distinct token, and how many latents are live at every place."""
    tokens, place = np.unique(ids, return_inverse=True)
    counts = np.zeros((dictionary.size, len(tokens)))
    live = np.empty(len(x), dtype=np.int64)
    for start in range(0, len(x), dictionaries.ROWS_AT_A_TIME):
        rows = slice(start, start + dictionaries.ROWS_AT_A_TIME)
        at, latent = (indices.cpu().numpy() for indices in torch.nonzero(dictionary.encode(x[rows]) > 0, as_tuple=True))
        np.add.at(counts, (latent, place[rows][at]), 1)
        live[rows] = np.bincount(at, minlength=len(live[rows]))
    return counts, live


def directions_of(dictionary: Dictionary) -> Float[Tensor, "m d"]:
    """Decoder rows; of a basis that was split into signs, one of each pair."""
    rows = dictionary.decoder
    return rows[: len(rows) // 2] if dictionary.name in BASES else rows


def nearest_cosine(rows: Float[Tensor, "m d"]) -> float:
    """Mean over rows of the largest |cosine| with another row."""
    rows = sensitivity.unit(rows)
    nearest = []
    for start in range(0, len(rows), dictionaries.ROWS_AT_A_TIME):
        cosines = (rows[start : start + dictionaries.ROWS_AT_A_TIME] @ rows.T).abs()
        here = torch.arange(len(cosines), device=rows.device)
        cosines[here, here + start] = 0
        nearest.append(cosines.amax(1))
    return float(torch.cat(nearest).mean())


def probed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    design: Design,
    those: Sequence[Dictionary],
    layer: int,
    spec: Mapping[str, Any],
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """k-sparse probing at the primary position, under the protocol that holds most out."""
    settings = spec["dictionaries"]
    held_out = list(probe_grid.testable(design, spec["design"]["protocols"], {**spec["probes"], "inner_folds": 0}))
    held_out = [(protocol, folds) for protocol, folds in held_out if protocol != probe_grid.PUBLISHED]
    if not held_out:
        progress.logger("dictionaries").warning("%s: no protocol holds anything out; no sparse probes", design.name)
        return
    protocol, folds = held_out[0]
    x = site_activations(model, tokenizer, design, np.arange(len(design.texts)), layer, spec).x
    targets = capacity.targets(design)
    inference = spec["statistics"]
    resampling = probe_grid.resample(design, targets, inference, settings["seed"])
    for dictionary in those:
        if dictionary.seed:
            continue
        codes = torch.cat([dictionary.encode(part) for part in x.split(dictionaries.ROWS_AT_A_TIME)])
        for count in settings["sparse_probes"]:
            correct = np.stack(
                [sparse_probe(codes, designs.parity(design, target), folds, count) for target in targets], axis=1
            )
            row = {
                **site,
                "dictionary": dictionary.name,
                "size": dictionary.size,
                "k": dictionary.k,
                "seed": dictionary.seed,
                "kind": protocol,
                "at": float(count),
                "score": "sparse_probe",
                "level": 0.5,
                "n_tokens": len(x),
                "note": dictionary.note,
            }
            for group in resampling.groups:
                units = statistics.fewest_units(group.items, group.carriers)
                interval = statistics.bootstrap(
                    correct[:, group.columns], group.weights, inference["confidence"], units, group.of_text
                )
                for place, column in enumerate(group.columns):
                    ends = {name: float(getattr(interval, name)[place]) for name in ("estimate", "lower", "upper")}
                    yield {**row, "target": targets[column], "n_groups": units, **ends}


def sparse_probe(
    codes: Float[Tensor, "n h"], labels: np.ndarray, folds: Sequence[splits.Fold], count: int
) -> Float[np.ndarray, " n"]:
    """Right answers (0, ½, 1) of LDA on the latents whose class means differ most, in units of their spread, where trained."""
    y = torch.as_tensor(labels, device=codes.device)
    correct = np.full(len(codes), np.nan)
    for fold in folds:
        train, wanted = codes[fold.train], y[fold.train]
        gap = (train[wanted].mean(0) - train[~wanted].mean(0)).abs() / train.std(0).clamp(min=1e-6)
        best = gap.topk(min(count, len(gap))).indices
        # A latent that never fires in the training part would make the covariance singular beyond any ridge.
        part = torch.cat([train[:, best], torch.ones(len(train), 1, device=codes.device)], dim=1)
        test = torch.cat([codes[fold.test][:, best], torch.ones(len(fold.test), 1, device=codes.device)], dim=1)
        fit = probe_grid.fit_probe(part, wanted[:, None], "lda", np.ones(1))
        logits = (test.double() @ fit.directions + fit.intercepts)[:, 0].cpu().numpy()
        signed = np.where(labels[fold.test], logits, -logits)
        correct[fold.test] = np.where(np.abs(signed) < 1e-5, 0.5, signed > 0)
    return correct


def site_activations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    design: Design,
    chosen: Int[np.ndarray, " n"],
    layer: int,
    spec: Mapping[str, Any],
) -> sensitivity.Site:
    """The chosen texts at the primary read position."""
    position = spec["activations"]["primary_position"]
    encoded = tokenization.encode(
        tokenizer,
        [design.texts[index] for index in chosen],
        {position: design.marks[position][chosen]},
        bos=spec["activations"]["primary_bos"],
        context=model.config.max_position_embeddings,
    )
    return sensitivity.Site(model, encoded.ids, encoded.positions[position], layer)


def moved(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    design: Design,
    kept: Int[np.ndarray, " n"],
    those: Sequence[Dictionary],
    layer: int,
    around: Surroundings,
    spec: Mapping[str, Any],
    site: Mapping[str, Any],
    scoring: _Scoring,
) -> Iterator[dict[str, Any]]:
    """Responses to moves at the primary position, of SAEs trained here or by others and of random rows, first seeds."""
    settings = spec["dictionaries"]
    rng = np.random.default_rng([settings["seed"], 7])
    shuffled = pd.Series(rng.permutation(kept))
    # Evenly from the couples: the first of each come before the second of any.
    turn = shuffled.groupby(design.couples[shuffled]).cumcount().to_numpy()
    chosen = np.sort(shuffled.to_numpy()[np.argsort(turn, kind="stable")][: settings["sites"]])
    at = site_activations(model, tokenizer, design, chosen, layer, spec)
    rest = np.setdiff1d(np.arange(len(design.texts)), kept)
    rest = np.sort(rng.choice(rest, min(settings["sites"] * 8, len(rest)), replace=False))
    others = site_activations(model, tokenizer, design, rest, layer, spec).x
    scale = float((others - others.mean(0)).square().sum(1).mean().sqrt())
    factors = {name: design.factors[name][rest] for name in design.factors}
    factors = {name: labels for name, labels in factors.items() if 0 < labels.sum() < len(labels)}
    shared = sensitivity.random_directions(at.x, around, settings["directions"], scoring.generator("moved"))
    shared |= sensitivity.labelled_directions(others, factors, len(at.x)) if factors else {}
    distances = settings["distances"]
    common = sensitivity.curves(at, shared, distances, scale)
    resamples = np.random.default_rng([settings["seed"], 8])
    unit_of, weights = resampled(design, chosen, spec["statistics"]["resamples"], resamples)

    def over_texts(values: Float[np.ndarray, " n"]) -> dict[str, float]:
        parts = [np.bincount(unit_of, v, weights.shape[1]) for v in (values, np.ones(len(values)))]
        return ratio(*parts, weights, scoring.confidence)

    size = {"n_tokens": len(at.x), "n_groups": weights.shape[1]}
    for dictionary in those:
        if dictionary.name in (*BASES, FROZEN) or dictionary.seed:
            continue
        live = torch.nonzero((dictionary.encode(at.x) > 0).any(0) | (dictionary.encode(others) > 0).any(0))[:, 0].cpu()
        if not len(live):
            progress.logger("dictionaries").warning(
                "%s, layer %d: no latent fires at the read position", dictionary.name, layer
            )
            continue
        generator = scoring.generator("decoder")
        rows = {"decoder": sensitivity.decoder_directions(dictionary, at.x, live, settings["directions"], generator)}
        responses = common | sensitivity.curves(at, rows, distances, scale)
        sphere = sensitivity.Sphere({kind: found[0] for kind, found in responses.items()})
        here = {**size, "at": float(distances[0])}
        isotropic = common["isotropic"].mean((1, 2))
        for kind, found in responses.items():
            if dictionary.name == RANDOM and kind != STANDS_IN:
                # No dictionary has a part in it: it is in the table once, beside random rows.
                continue
            spikes = over_texts(sphere.kurtosis(kind))
            yield scoring.row(dictionary, "kurtosis", spikes, kind=kind, level=0.0, **here)
            value = over_texts(sphere.beyond(kind))
            yield scoring.row(dictionary, "above_random", value, kind=kind, level=1 - sensitivity.EXTREME, **here)
            farther = sensitivity.magnitude_ratio(found.mean((1, 2)), isotropic, distances)
            yield scoring.row(dictionary, "magnitude_ratio", farther, kind=kind, level=1.0, **size)
            for place, distance in enumerate(distances):
                value = over_texts(found[place].mean(0))
                yield scoring.row(
                    dictionary, "response", value, kind=kind, level=0.0, **{**size, "at": float(distance)}
                )
        among = sensitivity.among_errors(at, dictionary, settings["draws"], scoring.generator("errors"))
        for score, values in (
            ("z_score", among.z),
            ("beyond_errors", among.beyond),
            ("error_variation", among.variation),
        ):
            level = {"z_score": 0.0, "beyond_errors": 0.025}.get(score, UNKNOWN)
            yield scoring.row(dictionary, score, over_texts(values), kind="reconstruction", level=level, **size)
        jitter = {}
        for centre, kind, values in sensitivity.preserving_l0(
            scoring.whole, dictionary, around, settings["jitter"], scoring.generator("jitter")
        ):
            jitter[centre, kind] = values
        for (centre, kind), values in jitter.items():
            row = {"kind": kind, "target": f"around_{centre}", "at": float(settings["jitter"])}
            yield scoring.row(dictionary, "jitter_kl", scoring.mean(values), level=0.0, **row)
            if kind != "same_latents":
                value = scoring.ratio(jitter[centre, "same_latents"], values)
                yield scoring.row(dictionary, "jitter_ratio", value, level=1.0, **row)


def _like(dictionary: Dictionary) -> tuple[str, int, int]:
    return dictionary.name, dictionary.size, dictionary.k


def _squares(x: Float[Tensor, "n d"]) -> Float[np.ndarray, " n"]:
    return x.double().square().sum(1).cpu().numpy()
