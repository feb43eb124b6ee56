"""Texts to token ids, characters to token positions, and the word-level tokenizer of the embedded model.

A read position is declared as a CHARACTER of the text (`Design.marks`); the token that is read is the last
one whose character span [start, end) contains it. Spans come from the tokenizer's own offset mapping, so a
token that carries its leading space (byte-level BPE), a space marker (SentencePiece) or only half of a
character (byte fallback) is found alike.

Special tokens are never added by the tokenizer: libraries disagree on whether a family gets a
beginning-of-sequence token (TransformerLens 2 prepended one for Pythia, TransformerBridge does not), and a
probe's result changes with it. It is a factor of the experiment here, prepended explicitly and counted in the
positions.

Pitfalls. A tokenizer without byte fallback replaces a character it does not know by its unknown token, and
some drop it without a trace: two different texts may then be one text to the model. Hence the round trip: ids
are decoded again and compared with the text, up to white space and Unicode's canonical composition (Pythia's
tokenizers apply NFC). A text that spells a special token ("</s>") would be read as control, not as words, and
is refused too. Two marks may fall into one token where a vocabulary merges a period with what precedes it.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tokenizers
from jaxtyping import Int

from counterprobe.progress import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, UNKNOWN = "[PAD]", "[BOS]", "[UNK]"

# An encoding holds tokens, spans and masks beside the ids, kilobytes a text: only so many exist at a time.
TEXTS_AT_A_TIME = 1024


@dataclass(frozen=True)
class Encoded:
    """Token ids of n texts, and the index of the token that each read position means.

    ids: one tuple a text, beginning with the BOS token where one was asked for.
    positions: read position -> int64 [n], index into `ids` (BOS counted).
    """

    ids: tuple[tuple[int, ...], ...]
    positions: dict[str, Int[np.ndarray, " n"]]


def word_level_tokenizer(vocabulary: Sequence[str]) -> tokenizers.Tokenizer:
    """A tokenizer that knows exactly these words: text is cut at white space and around each punctuation
    mark.

    Ids are 0, 1, 2 for [PAD], [BOS], [UNK], then the pieces of the vocabulary in order of first appearance:
    an entry that holds punctuation ("Guinea-Bissau", "Alice:") contributes each of its pieces, so every word
    of the vocabulary reads back. Case matters. Raises UserError for a vocabulary without a word.
    """
    split = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Punctuation("isolated")]
    )
    pieces = itertools.chain.from_iterable(split.pre_tokenize_str(entry) for entry in vocabulary)
    words = dict.fromkeys([PAD, BOS, UNKNOWN])
    words.update(dict.fromkeys(piece for piece, _ in pieces))
    if len(words) == 3:
        raise UserError("the vocabulary of the word-level tokenizer holds no word; give it the words of the corpus")
    model = tokenizers.models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens([PAD, BOS, UNKNOWN])
    return tokenizer


def save_tokenizer(tokenizer: tokenizers.Tokenizer, directory: Path | str) -> None:
    """Write tokenizer.json and tokenizer_config.json, the files of a Hugging Face snapshot, into a folder.

    Written here and not by `save_pretrained`, which in transformers 5 names a tokenizer class that version 4
    refuses and makes files that only their owner can read.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    configuration = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BOS,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(configuration, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(directory: Path | str) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder, from local files only. UserError where transformers cannot read it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{directory}: the tokenizer cannot be read ({reason}); put a tokenizer.json there") from error


def encode(
    tokenizer: tokenizers.Tokenizer | PreTrainedTokenizerFast,
    texts: Sequence[str],
    marks: Mapping[str, Int[np.ndarray, " n"]],
    *,
    bos: bool,
    context: int,
) -> Encoded:
    """Token ids of every text, and where each read position is found in them.

    marks: read position -> index of the character whose token is read. context: the most tokens a model
    takes, BOS included. Raises UserError for a tokenizer without offsets, a BOS token that does not exist, a
    text that is empty, longer than the context or not readable (see `unreadable`), and a mark that no token
    covers.
    """
    backend = _backend(tokenizer)
    prefix = (_bos_id(tokenizer),) if bos else ()
    control = _control_ids(tokenizer)
    ids: list[tuple[int, ...]] = []
    positions = {position: np.empty(len(texts), dtype=np.int64) for position in marks}
    # One integer object a token id, not one a token: a tuple then costs eight bytes a token.
    shared: dict[int, int] = {}
    for index, encoding in enumerate(_encodings(backend, texts)):
        text = texts[index]
        fault = _fault(backend, control, text, encoding)
        if fault:
            raise UserError(f"{name_of(index, text)}: {fault}; change the text, or drop its group (unreadable: drop)")
        length = len(prefix) + len(encoding.ids)
        if length > context:
            raise UserError(
                f"{name_of(index, text)}: {length} tokens{' with BOS' if bos else ''}, and the model reads "
                f"at most {context}; shorten the text"
            )
        ids.append(prefix + tuple(shared.setdefault(token, token) for token in encoding.ids))
        for position, characters in marks.items():
            character = int(characters[index])
            token = _covering(encoding, character)
            if token is None:
                raise UserError(
                    f"{name_of(index, text)}: no token covers character {character} "
                    f"({text[character : character + 1]!r}), the read position {position!r}; mark a "
                    "character that is not white space"
                )
            positions[position][index] = len(prefix) + token
    return Encoded(tuple(ids), positions)


def unreadable(tokenizer: tokenizers.Tokenizer | PreTrainedTokenizerFast, texts: Sequence[str]) -> list[int]:
    """Indices of the texts that the tokenizer cannot read back.

    A text is unreadable where a piece of it becomes the unknown token or a special one, and where its decoded
    ids differ from it by more than white space and Unicode's canonical composition.
    """
    backend = _backend(tokenizer)
    control = _control_ids(tokenizer)
    return [
        index
        for index, encoding in enumerate(_encodings(backend, texts))
        if _fault(backend, control, texts[index], encoding)
    ]


def name_of(index: int, text: str) -> str:
    """How a message names a text: its number and its beginning."""
    return f"text {index} ({text if len(text) <= 60 else text[:57] + '...'!r})"


def _backend(tokenizer: tokenizers.Tokenizer | PreTrainedTokenizerFast) -> tokenizers.Tokenizer:
    backend = (
        tokenizer if isinstance(tokenizer, tokenizers.Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
    )
    if backend is None:
        raise UserError(
            f"{type(tokenizer).__name__} keeps no offsets from tokens to characters, so a read position "
            "cannot be found; put a tokenizer.json (a fast tokenizer) beside the model"
        )
    # Some published tokenizer.json files carry these settings, and would cut or pad a text without a word.
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    return backend


def _bos_id(tokenizer: tokenizers.Tokenizer | PreTrainedTokenizerFast) -> int:
    bos = tokenizer.token_to_id(BOS) if isinstance(tokenizer, tokenizers.Tokenizer) else tokenizer.bos_token_id
    if bos is None:
        raise UserError("the tokenizer has no BOS token, and bos: true asks for one; take true out of activations.bos")
    return bos


def _control_ids(tokenizer: tokenizers.Tokenizer | PreTrainedTokenizerFast) -> frozenset[int]:
    """Ids that stand for no text: the unknown token and every special one."""
    special = {index for index, token in _backend(tokenizer).get_added_tokens_decoder().items() if token.special}
    if not isinstance(tokenizer, tokenizers.Tokenizer) and tokenizer.unk_token_id is not None:
        special.add(tokenizer.unk_token_id)
    return frozenset(special)


def _encodings(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> Iterator[tokenizers.Encoding]:
    for start in range(0, len(texts), TEXTS_AT_A_TIME):
        yield from backend.encode_batch(list(texts[start : start + TEXTS_AT_A_TIME]), add_special_tokens=False)


def _fault(
    backend: tokenizers.Tokenizer, control: Collection[int], text: str, encoding: tokenizers.Encoding
) -> str | None:
    """What keeps the tokenizer from reading this text back, or None."""
    if not encoding.ids:
        return "no token at all"
    for token, name, (start, end) in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True):
        if token in control:
            return f"the tokenizer reads {text[start:end]!r} (character {start}) as {name}"
    back = backend.decode(encoding.ids, skip_special_tokens=False)
    if _without_space(back) != _without_space(text):
        return f"the tokenizer reads it back as {back!r}"
    return None


def _without_space(text: str) -> str:
    return "".join(unicodedata.normalize("NFC", text).split())


def _covering(encoding: tokenizers.Encoding, character: int) -> int | None:
    """Index of the last token whose span holds the character: only there has the model read all of it."""
    token = encoding.char_to_token(character) if character >= 0 else None
    if token is None:
        return None
    for later in range(token + 1, len(encoding.offsets)):
        start, end = encoding.offsets[later]
        if not start <= character < end:
            break
        token = later
    return token
