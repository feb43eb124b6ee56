"""Does a language model need an embedding that was learned? The embedded model, trained around rows that never move.

Every frozen model has a trainable twin of the same seed, which learned from the same lines in the same order:

    trainable    as the embedded model is trained
    gaussian     entries of the initialisation's N(0, 2 / 5d); a row whose cosine with an earlier row exceeds `similar` is
                 drawn anew, so that no two tokens look alike by chance
    orthogonal   rows of random orthogonal bases (Haar), as many as the vocabulary fills, of the Gaussian rows' length; two
                 bases with rows that are too similar are drawn anew
    permuted     the rows that the trainable twin has learned, each dealt to another token: the right rows in the wrong places

each untied, as Pythia's and the embedded model's are, and tied, as GPT-2's: then the unembedding is frozen as well. Claim
C38 (L. Mendel: random embeddings do a lot worse), whose author speaks of GPT-2; Bochkov 2025 (arXiv 2507.04886) finds no
loss with untied ones. The same author's milder version, of a trainable model that is trained:

    one_row             one token's row replaced by a Gaussian one of the initialisation's length, no more similar to any other
                        row than `similar`; numbers are means over `rows` tokens, drawn among those that occur, one at a time
    one_row_tuned       then `finetune` more steps of all weights
    trainable_tuned     as many more steps of the model as it is, which is what `one_row_tuned` is held against

Beside them: how often the model answers right (truth, which is negated ⊕ match), and what a probe reads at the token it
answers from, of this XOR that is needed and of the pre-registered one that nothing needs. What a kind loses, over all seeds:
module `frozen_embedding_table`.

Pitfalls: rotary positions and normalisations before each block leave directions of rows only, and a block's first matrix can
undo any rotation of them: what a frozen row lacks is likeness to its neighbours in meaning. The size decides: with few tokens
in a wide space there is nothing to compress. A frozen matrix is a budget of fewer parameters, too; the gap is for this recipe
and this many steps, not for the limit of training.
"""

import copy
import itertools
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import tokenizers
import torch
from jaxtyping import Float
from torch import Tensor

from counterprobe import (
    components,
    designs,
    embedded_model,
    language_model,
    probe_grid,
    progress,
    statements,
    superposition_cells,
    tokenization,
)
from counterprobe.designs import Design
from counterprobe.frozen_embedding_table import BLANK, COLUMNS, ONE_ROW, ONE_ROW_TUNED, TRAINABLE, TUNED
from counterprobe.language_model import Batch, Embedding
from counterprobe.progress import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

KINDS = ("gaussian", "orthogonal", "permuted")
# Lines on which the loss is taken, drawn from a stream that no training draws from.
LINES = 2048
POSITION = "last"
PROTOCOLS = ("carriers", "items")
TOKENS = 8192
TRIES = 1000


def measure(spec: Mapping[str, Any], resources: Sequence[str | Path], seed: int, *, device: str) -> pd.DataFrame:
    """Train every kind under one seed, tied and untied; one row a number, with the columns of `COLUMNS`.

    spec: `frozen_embeddings` (architecture, training, similar, rows, finetune, seed), `corpus`, `run.frozen_embeddings` (the
    kinds), `probes`. Raises UserError as the trainer does, and for rows that cannot be told apart in so small a width.
    """
    settings, kinds = spec["frozen_embeddings"], spec["run"]["frozen_embeddings"]
    world = statements.world(spec["corpus"], Path(resources[0]).parent)
    design = statements.factorial("frozen_embeddings", {}, world)
    lines = held_out_lines(tokenization.word_level_tokenizer(statements.vocabulary(world)), world, spec)
    log = progress.logger("frozen_embeddings")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for tied in (False, True):
            learned = None
            # The trainable one first: the permuted rows are its.
            for kind in (TRAINABLE, *(kind for kind in KINDS if kind in kinds)):
                start = Embedding(tied=tied)
                if learned is not None:
                    frozen = rows_of(
                        kind, learned, settings["similar"], np.random.default_rng([seed, KINDS.index(kind)])
                    )
                    start = Embedding(frozen, frozen=True, tied=tied)
                folder = Path(scratch) / f"{kind}_{tied}"
                model, tokenizer = _trained(settings, spec["corpus"], resources, seed, start, folder, device=device)
                learned = model.get_input_embeddings().weight.cpu() if kind == TRAINABLE else learned
                site = {"embedding": kind, "tied": tied, "seed": seed, "n_seeds": 1}
                found = list(_numbers(model, tokenizer, lines, spec, design))
                rows += [{**BLANK, **site, **number} for number in found]
                if kind == TRAINABLE:
                    one_row = _one_row_at_a_time(model, tokenizer, lines, world, spec, design, seed, found)
                    rows += [{**BLANK, **site, **number} for number in one_row]
                log.info("%s, %s, seed %d: loss %.3f", kind, "tied" if tied else "untied", seed, found[0]["estimate"])
    return superposition_cells.typed(pd.DataFrame(rows), COLUMNS)


# --- rows that never move ------------------------------------------------------------------------------------


def rows_of(kind: str, learned: Float[Tensor, "V d"], similar: float, rng: np.random.Generator) -> Float[Tensor, "V d"]:
    """The frozen matrix of a kind, for a vocabulary and a width as those of `learned`, the trainable twin's embedding."""
    if kind == "permuted":
        return learned[torch.as_tensor(rng.permutation(len(learned)))].clone()
    drawn = gaussian(*learned.shape, similar, rng) if kind == "gaussian" else orthogonal(*learned.shape, similar, rng)
    return torch.as_tensor(drawn * language_model.initial_deviation(learned.shape[1]), dtype=torch.float32)


def gaussian(tokens: int, width: int, similar: float, rng: np.random.Generator) -> Float[np.ndarray, "V d"]:
    """Standard normal rows, none with a cosine above `similar` with an earlier one. UserError where there is no room."""
    rows = np.empty((tokens, width))
    for place in range(tokens):
        for _ in range(TRIES):
            rows[place] = rng.standard_normal(width)
            if largest_cosine(rows[: place + 1], rows[place : place + 1]) <= similar:
                break
        else:
            raise _no_room(tokens, width, similar)
    return rows


def orthogonal(tokens: int, width: int, similar: float, rng: np.random.Generator) -> Float[np.ndarray, "V d"]:
    """Rows of length √width from random orthogonal bases, one base after the other. UserError where there is no room."""
    rows = np.empty((0, width))
    while len(rows) < tokens:
        for _ in range(TRIES):
            q, r = np.linalg.qr(rng.standard_normal((width, width)))
            # The signs of R's diagonal make Q uniform over all bases (Mezzadri 2007, Notices of the AMS 54:592).
            base = (q * np.sign(np.diag(r))).T[: tokens - len(rows)] * math.sqrt(width)
            if not len(rows) or largest_cosine(np.concatenate([rows, base]), base) <= similar:
                break
        else:
            raise _no_room(tokens, width, similar)
        rows = np.concatenate([rows, base])
    return rows


def largest_cosine(rows: Float[np.ndarray, "V d"], last: Float[np.ndarray, "n d"]) -> float:
    """Of the last n rows with any other row; −1 where there is no other."""
    cosines = (last @ rows.T) / np.linalg.norm(last, axis=1)[:, None] / np.linalg.norm(rows, axis=1)
    own = np.arange(len(last))
    cosines[own, len(rows) - len(last) + own] = -1.0
    return float(cosines.max())


def _no_room(tokens: int, width: int, similar: float) -> UserError:
    return UserError(
        f"frozen_embeddings.similar: {tokens} random rows of width {width} with no cosine above {similar:g} were not found; "
        "raise it, widen the model or shrink its corpus"
    )


# --- one model -----------------------------------------------------------------------------------------------


def _trained(
    settings: Mapping[str, Any],
    corpus: Mapping[str, Any],
    resources: Sequence[str | Path],
    seed: int,
    start: Embedding,
    folder: Path,
    *,
    device: str,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerFast]":
    last = f"step{settings['training']['steps']}"
    model = {
        "source": "train",
        "architecture": settings["architecture"],
        "training": {**settings["training"], "seed": seed},
        "revisions": [last],
    }
    embedded_model.train(model, corpus, resources, folder, device=device, embedding=start)
    return language_model.load(folder / last, device=device), tokenization.load_tokenizer(folder / last)


def _numbers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    lines: Sequence[Batch],
    spec: Mapping[str, Any],
    design: Design,
) -> Iterator[dict[str, Any]]:
    """Loss first; the entropy of frequencies, likeness of rows, right answers, and what a probe reads."""
    loss, entropy, tokens = held_out_loss(model, lines)
    yield {"score": "loss", "level": entropy, "estimate": loss, "n_texts": LINES, "note": f"nats, {tokens} tokens"}
    rows = model.get_input_embeddings().weight.double().cpu().numpy()
    yield {"score": "largest_cosine", "estimate": largest_cosine(rows, rows)}
    right = right_answers(model, tokenizer, design)
    yield right
    names = [right["target"], designs.canonical(design, "^".join(design.primary))]
    of_texts = {name: right[name] for name in ("score", "level", "n_texts")}
    yield from ({**of_texts, **read} for read in reads(model, tokenizer, design, names, spec["probes"]))


def right_answers(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", design: Design) -> dict[str, Any]:
    """Share of the texts that the model itself continues rightly with true or false."""
    truth = designs.canonical(design, statements.TRUTH)
    asked = design.readouts[truth]
    odds = language_model.answers(model, tokenizer, asked.prefixes, asked.positive, asked.negative, bos=False)
    right = (np.sign(np.where(designs.parity(design, truth), odds, -odds)) + 1) / 2
    of_texts = {"score": "accuracy", "level": 0.5, "n_texts": len(design.texts)}
    return {**of_texts, "target": truth, "probe": "answer", "estimate": float(right.mean())}


def _one_row_at_a_time(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    lines: Sequence[Batch],
    world: statements.World,
    spec: Mapping[str, Any],
    design: Design,
    seed: int,
    before: Sequence[Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Loss and right answers of a trained model with a row randomised, finetuned from there, and finetuned as it is; what
    it had `before` says what these are held against."""
    settings = spec["frozen_embeddings"]
    training = language_model.Training(**{**settings["training"], "seed": seed})
    rng = np.random.default_rng([seed, len(KINDS)])
    tokens = chosen_tokens(lines, settings["rows"], rng)
    deviation = language_model.initial_deviation(settings["architecture"]["width"])
    measured: dict[str, list[tuple[float, float]]] = {TUNED: [], ONE_ROW: [], ONE_ROW_TUNED: []}

    def numbers(one: "PreTrainedModel") -> tuple[float, float]:
        loss, _, _ = held_out_loss(one, lines)
        return loss, right_answers(one, tokenizer, design)["estimate"]

    for token in (None, *tokens):
        changed = copy.deepcopy(model)
        if token is not None:
            rows = changed.get_input_embeddings().weight
            drawn = another_row(rows.double().cpu().numpy(), token, settings["similar"], rng) * deviation
            rows[token] = torch.as_tensor(drawn, dtype=rows.dtype)
            measured[ONE_ROW].append(numbers(changed))
        # The same lines after every change.
        learned = _lines(tokenizer.backend_tokenizer, world, spec, training.batch, [seed, 3])
        language_model.finetune(changed, learned, training, settings["finetune"])
        measured[TUNED if token is None else ONE_ROW_TUNED].append(numbers(changed))
    before = [row for row in before if row["score"] == "loss" or row.get("probe") == "answer"]
    words = ", ".join(tokenizer.convert_ids_to_tokens(tokens))
    for kind, found in measured.items():
        note = "" if kind == TUNED else f"rows of: {words}"
        for row, estimates in zip(before, zip(*found, strict=True), strict=True):
            yield {**row, "embedding": kind, "estimate": sum(estimates) / len(found), "note": note}


def chosen_tokens(lines: Iterable[Batch], count: int, rng: np.random.Generator) -> list[int]:
    """This many ids among those that lines have after their first token."""
    seen = np.unique(np.concatenate([batch.ids[:, 1:][batch.mask[:, 1:]].numpy() for batch in lines]))
    return sorted(rng.choice(seen, min(count, len(seen)), replace=False).tolist())


def another_row(
    rows: Float[np.ndarray, "V d"], token: int, similar: float, rng: np.random.Generator
) -> Float[np.ndarray, " d"]:
    """A standard normal row, with no cosine above `similar` with any row but the token's own. UserError without room."""
    others = np.delete(rows, token, axis=0)
    others = others[np.linalg.norm(others, axis=1) > 0]
    for _ in range(TRIES):
        drawn = rng.standard_normal(rows.shape[1])
        if largest_cosine(np.concatenate([others, drawn[None]]), drawn[None]) <= similar:
            return drawn
    raise _no_room(*rows.shape, similar)


def held_out_lines(tokenizer: tokenizers.Tokenizer, world: statements.World, spec: Mapping[str, Any]) -> list[Batch]:
    """The same `LINES` lines for every model of a corpus."""
    batch = min(LINES, spec["frozen_embeddings"]["training"]["batch"])
    lines = _lines(tokenizer, world, spec, batch, [spec["frozen_embeddings"]["seed"], 2])
    return list(itertools.islice(lines, math.ceil(LINES / batch)))


def _lines(
    tokenizer: tokenizers.Tokenizer, world: statements.World, spec: Mapping[str, Any], batch: int, seed: list[int]
) -> Iterator[Batch]:
    corpus = spec["corpus"]
    rng = np.random.default_rng(seed)
    return language_model.batches(
        lambda n: statements.corpus_texts(world, corpus, n, rng),
        tokenizer,
        batch=batch,
        context=language_model.Architecture(**spec["frozen_embeddings"]["architecture"]).context,
        seed=seed[0],
    )


def held_out_loss(model: "PreTrainedModel", lines: Iterable[Batch]) -> tuple[float, float, int]:
    """Mean loss in nats a token, the entropy of the same tokens' frequencies, and their number."""
    total, counts = 0.0, np.zeros(model.config.vocab_size)
    for batch in lines:
        scored = batch.ids[:, 1:][batch.mask[:, 1:]]
        with torch.inference_mode():
            mean = language_model.next_token_loss(model, Batch(batch.ids.to(model.device), batch.mask.to(model.device)))
        total += float(mean) * len(scored)
        counts += np.bincount(scored.numpy(), minlength=len(counts))
    shares = counts[counts > 0] / counts.sum()
    return total / counts.sum(), float(-(shares * np.log(shares)).sum()), int(counts.sum())


def reads(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    design: Design,
    names: Sequence[str],
    settings: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Held-out accuracy of the reference probe at the token that is answered from, at the layer its inner folds choose."""
    found = next(iter(probe_grid.testable(design, PROTOCOLS, settings)), None)
    if found is None:
        return
    texts = components.sequences(model, tokenizer, design, POSITION, bos=False, token_budget=TOKENS)
    residuals = components.read(model, components.blocks_of(model), texts).residuals
    labels = np.stack([designs.parity(design, name) for name in names], axis=1)
    # The embedding of a token that all texts share tells nothing: blocks only.
    held_out = [
        probe_grid.cross_validate(
            level[texts.of_text].clone().float(), labels, found[1], settings["penalties"], probe_grid.REFERENCE
        )
        for level in residuals[1:]
    ]
    chosen = np.stack([one.inner_bits.mean(axis=0) for one in held_out]).argmax(axis=0)
    for column, name in enumerate(names):
        accuracy = float(np.nanmean(held_out[chosen[column]].correct[:, column]))
        row = {"target": name, "probe": probe_grid.REFERENCE, "layer": int(chosen[column]) + 1}
        yield {**row, "estimate": accuracy, "note": f"held out: {found[0]}"}
