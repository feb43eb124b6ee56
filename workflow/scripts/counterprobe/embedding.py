"""Directions of token properties in the embedding matrix W_E: a feature of training, or of any matrix with so many rows?

A property splits the vocabulary in two: uppercase against lowercase first letters, tokens that begin with a space, digits,
plurals whose singular is a token as well, and, where the corpus is ours, its classes of words (names, cities, ...). Its
direction is the difference of the class means over three quarters of the tokens, and a token of the last quarter is scored
by its projection on it:

    d = mean of W_E[t] over the class − mean of W_E[t] over the rest,      score(t) = W_E[t] · d

AUROC of the scores within each held-out fold, averaged over folds; its standard error is DeLong's (DeLong, DeLong and
Clarke-Pearson 1988, Biometrics 44:837). Selectivity is what is left of it above the mean of random labels with as many
positives in every fold. In-sample such a direction separates anything (768 dimensions, few positives); held out it need
not. After W. Gurnee's direction of capital letters (W_E of Mistral-7B, without these controls).

The same for other matrices of the same shape, which no training has made:

    init              a fresh initialisation of the same architecture (and `step0`, the first revision, where there is one)
    matched_gaussian  rows drawn from a Gaussian with the mean and the covariance of W_E's rows
    shuffled_columns  each column permuted over the tokens by itself: marginals of every coordinate, and nothing else

The rung `permuted_columns` of the ladder is no control here: it moves all rows alike, and no score changes.

Tokens are read as text: a byte-level vocabulary (Ġ) is turned back into bytes, a sentencepiece one (▁) into spaces; a
word-level one has no spaces. Tokens that are special, empty or a part of a character have no property; rows of W_E beyond
the vocabulary (padding) are left out. A tokenizer of another kind is refused by name.

Pitfalls: intervals are over tokens, with the direction as it was found; an AUROC of 1 has an interval of no width. Where there
is no direction the folds are not independent (a pair of tokens counts once with either held out), and small classes stray
up to √2 times further from .5 than their interval says: `p_random_labels`, the share of random labels that do as well, is
exact there.
A property can be decodable from W_E because the tokens differ in frequency: `matched_gaussian` does not rule that out, the
revisions do in part. Tied embeddings are also the unembedding: the note says so.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import special
from scipy.stats import rankdata

from counterprobe import checkpoints, embedding_codes, statements, tables, tokenization
from counterprobe.progress import UserError, logger
from counterprobe.revisions import step_of
from counterprobe.statements import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# What transformers calls the token embedding of the architectures whose parts are known (`components.FAMILIES`).
EMBEDDINGS = ("embed_in.weight", "embed_tokens.weight", "wte.weight")
UNEMBEDDINGS = ("embed_out.weight", "lm_head.weight")
# Of the corpus, for the frequencies of its tokens.
LINES = 4000
TIED = "tied: W_E is also the unembedding"
SPACE = "▁"


@dataclass(frozen=True)
class Vocabulary:
    """Text of every row of W_E, None where it has none; `spaced`: whether tokens can begin with a space."""

    texts: tuple[str | None, ...]
    spaced: bool


@dataclass(frozen=True)
class Separation:
    """Of one property in one matrix: AUROC and standard error, and the AUROCs of the random labels [R]."""

    auroc: float
    error: float
    random: Float[np.ndarray, " R"]
    n_tokens: int


def measure(
    manifests: Sequence[str | Path],
    corpus: Mapping[str, Any] | None,
    resources: Sequence[str | Path],
    spec: Mapping[str, Any],
    model: str,
) -> pd.DataFrame:
    """Every property, and sparse codes, at every revision; and in matrices nobody trained, at the last one.

    manifests: of the model's revisions, in their order. corpus: of a model that was trained here. spec: `embedding`, and
    `statistics.confidence`. UserError where the architecture or the tokenizer is not known.
    """
    settings, confidence = spec["embedding"], spec["statistics"]["confidence"]
    folders = [checkpoints.open_checkpoint(manifest) for manifest in manifests]
    words = vocabulary(tokenization.load_tokenizer(folders[-1]))
    world = None if corpus is None else statements.world(corpus, Path(resources[0]).parent)
    labels = {
        name: label
        for name, label in properties(words, world).items()
        if min((label == 1).sum(), (label == 0).sum()) >= settings["tokens"]
    }
    if not labels:
        logger("embedding").warning("%s: no property has %d tokens on either side", model, settings["tokens"])
    weights_of, said = frequencies(tokenization.load_tokenizer(folders[-1]), world, corpus, len(words.texts))
    rows: list[dict[str, Any]] = []
    for manifest, folder in zip(manifests, folders, strict=True):
        revision = Path(manifest).parent.name
        matrix, tied = token_embeddings(folder)
        site = {
            **tables.NOT_APPLICABLE,
            "model": model,
            "revision": revision,
            "step": step_of(revision),
            "weights": "trained",
            "design": "none",
            "layer": 0,
            "probe": "class_mean",
            "note": TIED if tied else "",
        }
        rows += direction_rows(matrix, labels, settings, confidence, site)
        coded = {**site, "note": "; ".join(filter(None, [site["note"], said]))}
        rows += embedding_codes.code_rows(
            matrix[: len(weights_of)],
            weights_of,
            settings["code"],
            confidence,
            coded,
            words.texts if manifest == manifests[-1] else None,
        )
    for weights, seed, other in controls(folders[-1], matrix, settings["seeds"]):
        drawn = {**site, "weights": weights, "seed": seed, "embeddings": "randomised", "note": ""}
        rows += direction_rows(other, labels, settings, confidence, drawn)
        rows += embedding_codes.code_rows(
            other[: len(weights_of)], weights_of, settings["code"], confidence, {**drawn, "note": said}
        )
    return tables.frame(rows)


def frequencies(
    tokenizer: "PreTrainedTokenizerFast", world: World | None, corpus: Mapping[str, Any] | None, n_tokens: int
) -> tuple[Float[np.ndarray, " tokens"], str]:
    """How often each token occurs in lines of the corpus, and what a note says of it: 1 where there is no corpus."""
    if world is None or corpus is None:
        return np.ones(n_tokens), "every token weighs the same"
    lines = statements.corpus_texts(world, corpus, LINES, np.random.default_rng(0))
    encoded = tokenization.encode(tokenizer, lines, {}, bos=False, context=1 << 31)
    counts = np.bincount(np.concatenate([np.array(ids) for ids in encoded.ids]), minlength=n_tokens)
    return counts.astype(float), "tokens weigh by their frequency"


def token_embeddings(folder: str | Path) -> tuple[Float[np.ndarray, "V d"], bool]:
    """W_E from the safetensors of a folder, and whether it is the unembedding too. Reads no other tensor."""
    from safetensors import safe_open

    found, untied = None, False
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (a safetensors file is no mapping)
                if name.endswith(EMBEDDINGS):
                    found = file.get_tensor(name).float().numpy()
                untied |= name.endswith(UNEMBEDDINGS)
    if found is None:
        raise UserError(
            f"{folder}: no token embedding named {', '.join(EMBEDDINGS)}; leave this model out of run.neurons"
        )
    return found, not untied


def controls(
    folder: Path, trained: Float[np.ndarray, "V d"], seeds: int
) -> Iterator[tuple[str, int, Float[np.ndarray, "V d"]]]:
    """(name, seed, matrix) of every matrix that nobody trained."""
    from counterprobe import language_model, weight_controls

    model = language_model.load(folder)
    for seed in range(seeds):
        weight_controls.apply(model, "init", embeddings="randomised", seed=seed)
        yield "init", seed, model.get_input_embeddings().weight.float().numpy().copy()
    for seed in range(seeds):
        yield "matched_gaussian", seed, matched_gaussian(trained, np.random.default_rng([seed, 1]))
        yield "shuffled_columns", seed, shuffled_columns(trained, np.random.default_rng([seed, 2]))


def matched_gaussian(matrix: Float[np.ndarray, "V d"], rng: np.random.Generator) -> Float[np.ndarray, "V d"]:
    """Rows from a Gaussian with the mean and the covariance of the rows of `matrix`."""
    mean = matrix.mean(axis=0)
    # R of a QR factorisation is a root of the scatter matrix, and exists for any rank.
    root = np.linalg.qr(matrix - mean, mode="r") / np.sqrt(len(matrix))
    return (mean + rng.standard_normal((len(matrix), len(root))) @ root).astype(matrix.dtype)


def shuffled_columns(matrix: Float[np.ndarray, "V d"], rng: np.random.Generator) -> Float[np.ndarray, "V d"]:
    """Every column permuted over the rows, each by itself."""
    return rng.permuted(matrix, axis=0)


def vocabulary(tokenizer: "PreTrainedTokenizerFast") -> Vocabulary:
    """The text of every token. UserError for a vocabulary that is neither byte-level, sentencepiece nor word-level."""
    backend = tokenizer.backend_tokenizer
    described = json.loads(backend.to_str())
    kind, parts = described["model"]["type"], json.dumps([described["decoder"], described["pre_tokenizer"]])
    byte_level, sentencepiece = (
        '"ByteLevel"' in parts,
        SPACE
        in json.dumps([described["decoder"], described["pre_tokenizer"], described["normalizer"]], ensure_ascii=False),
    )
    if not (byte_level or sentencepiece or kind == "WordLevel"):
        raise UserError(
            f"a {kind} tokenizer without byte-level (Ġ) or sentencepiece (▁) markers: which of its tokens begin with a "
            "space is not known; leave this model out of run.neurons"
        )
    special_ids = {index for index, token in backend.get_added_tokens_decoder().items() if token.special}
    texts: list[str | None] = [None] * (1 + max(backend.get_vocab().values()))
    for token, index in backend.get_vocab().items():
        if index in special_ids or index == tokenizer.unk_token_id:
            continue
        texts[index] = _text(token, byte_level=byte_level, sentencepiece=sentencepiece)
    return Vocabulary(tuple(texts), spaced=byte_level or sentencepiece)


def _text(token: str, *, byte_level: bool, sentencepiece: bool) -> str | None:
    if byte_level:
        try:
            return bytes(_BYTES[character] for character in token).decode("utf-8") or None
        except (KeyError, UnicodeDecodeError):
            # A part of a character, or an added token that is written out.
            return None
    if sentencepiece:
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return None
        return token.replace(SPACE, " ") or None
    return token or None


def _byte_characters() -> dict[str, int]:
    """Which printable character stands for which byte in a byte-level vocabulary (Radford et al. 2019): printable bytes
    for themselves, the others for code points from 256 on, in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_characters()


def properties(words: Vocabulary, world: World | None) -> dict[str, Int[np.ndarray, " tokens"]]:
    """For every property 1, 0, or −1 for a token that it does not apply to."""
    bare = [None if text is None else text.strip() for text in words.texts]
    first = [text[0] if text else "" for text in bare]
    known = np.array([bool(text) for text in bare])
    cased = np.array([character.isupper() or character.islower() for character in first])
    found = {
        "uppercase": _label(cased, [character.isupper() for character in first]),
        "digit": _label(known, [character.isdigit() for character in first]),
        "plural": _plurals(words.texts),
    }
    if words.spaced:
        letters = np.array([bool(text) and text[0].isalpha() for text in bare])
        found["leading_space"] = _label(letters, [bool(text) and text[0] == " " for text in words.texts])
    if world is not None:
        of_class = _word_classes(world)
        for name, inside in of_class.items():
            found[name] = _label(known, [text in inside for text in bare])
        names = {name for pair in world.name_pairs for name in pair}
        suffixes = {word for pair in world.suffix_pairs for word in pair}
        female, fruits = ({pair[0] for pair in pairs} for pairs in (world.name_pairs, world.suffix_pairs))
        found["female_name"] = _label(np.array([text in names for text in bare]), [text in female for text in bare])
        found["fruit"] = _label(np.array([text in suffixes for text in bare]), [text in fruits for text in bare])
    return found


def _word_classes(world: World) -> dict[str, set[str]]:
    """Words of the corpus by the part they play."""
    classes = {
        "name": {name for pair in world.name_pairs for name in pair},
        "suffix": {word for pair in world.suffix_pairs for word in pair},
    }
    for topic, items in world.items.items():
        described = statements.TOPICS[topic]
        classes[described.item] = {item for item, _ in items}
        classes[described.group] = {group for _, group in items}
    return classes


def _label(applies: np.ndarray, inside: Sequence[bool]) -> Int[np.ndarray, " tokens"]:
    return np.where(applies, np.asarray(inside, dtype=np.int64), -1)


def _plurals(texts: Sequence[str | None]) -> Int[np.ndarray, " tokens"]:
    """Word + s against word, for every word of four letters or more of which both are tokens."""
    places = {text: index for index, text in enumerate(texts) if text and text.strip().isalpha()}
    label = np.full(len(texts), -1)
    for text, index in places.items():
        plural = places.get(f"{text}s")
        if plural is not None and len(text.strip()) >= 4 and text.islower() and not text.endswith("s"):
            label[index], label[plural] = 0, 1
    return label


def direction_rows(
    matrix: Float[np.ndarray, "V d"],
    labels: Mapping[str, Int[np.ndarray, " tokens"]],
    settings: Mapping[str, Any],
    confidence: float,
    site: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """AUROC, that of random labels, the share of these that reach as much (p), and selectivity of every property."""
    z = special.ndtri((1 + confidence) / 2)
    for place, (name, label) in enumerate(labels.items()):
        rng = np.random.default_rng([settings["seed"], place])
        found = separate(matrix[: len(label)], label, settings["folds"], settings["random_labels"], rng)
        chance = found.random.std(ddof=1) / np.sqrt(len(found.random))
        row = {**site, "target": name, "n_texts": found.n_tokens, "n_groups": found.n_tokens}
        as_good = (1 + (found.random >= found.auroc).sum()) / (1 + len(found.random))
        yield {**row, "score": "p_random_labels", "estimate": float(as_good)}
        for score, control, level, value, error in (
            ("auroc", "none", 0.5, found.auroc, found.error),
            ("auroc", "shuffled", 0.5, found.random.mean(), chance),
            ("selectivity", "none", 0.0, found.auroc - found.random.mean(), np.hypot(found.error, chance)),
        ):
            ends = {"estimate": value, "lower": value - z * error, "upper": value + z * error}
            yield {**row, "score": score, "control": control, "level": level, **ends}


def separate(
    matrix: Float[np.ndarray, "V d"],
    label: Int[np.ndarray, " V"],
    n_folds: int,
    n_random: int,
    rng: np.random.Generator,
) -> Separation:
    """Held-out AUROC of the class-mean direction, and of random labels with as many positives in every fold."""
    tokens = np.flatnonzero(label >= 0)
    y, x = label[tokens] == 1, matrix[tokens].astype(np.float64)
    fold = np.empty(len(tokens), np.int64)
    for side in (y, ~y):
        fold[rng.permutation(np.flatnonzero(side))] = np.arange(side.sum()) % n_folds
    columns = np.repeat(y[:, None], 1 + n_random, axis=1)
    for index in range(n_folds):
        here = np.flatnonzero(fold == index)
        columns[here, 1:] = rng.permuted(columns[here, 1:], axis=0)
    aurocs, errors = [], []
    for index in range(n_folds):
        train, test = fold != index, fold == index
        inside = columns[train].astype(np.float64)
        directions = x[train].T @ (inside / inside.sum(axis=0) - (1 - inside) / (1 - inside).sum(axis=0))
        auroc, error = delong(x[test] @ directions, columns[test])
        aurocs.append(auroc)
        errors.append(error)
    means = np.mean(aurocs, axis=0)
    return Separation(
        auroc=float(means[0]),
        error=float(np.sqrt(np.square(errors)[:, 0].sum()) / n_folds),
        random=means[1:],
        n_tokens=len(tokens),
    )


def delong(
    scores: Float[np.ndarray, "n K"], labels: Bool[np.ndarray, "n K"]
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Area under the ROC curve of every column, ties as 1/2, and its standard error.

    Every column has as many positives. By midranks (Sun and Xu 2014, IEEE Signal Processing Letters 21:1389): the share of
    negatives below a positive is its rank among all less its rank among the positives, over the number of negatives.
    """
    order = np.argsort(~labels, axis=0, kind="stable")
    sorted_scores = np.take_along_axis(scores, order, axis=0)
    n_positive = int(labels[:, 0].sum())
    n_negative = len(scores) - n_positive
    ranks = rankdata(sorted_scores, axis=0)
    of_positives = (ranks[:n_positive] - rankdata(sorted_scores[:n_positive], axis=0)) / n_negative
    of_negatives = 1 - (ranks[n_positive:] - rankdata(sorted_scores[n_positive:], axis=0)) / n_positive
    variance = of_positives.var(axis=0, ddof=1) / n_positive + of_negatives.var(axis=0, ddof=1) / n_negative
    return of_positives.mean(axis=0), np.sqrt(variance)
