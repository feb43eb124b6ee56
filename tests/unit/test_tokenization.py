"""Ids and read positions against oracles that do not use the tokenizer's offsets."""

import json
import stat
import string
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from counterprobe import statements, tokenization
from counterprobe.progress import UserError

SHARED = Path(__file__).parents[2] / ".." / "shared"
GRAMMAR = (
    "Alice: The city of Paris is not in the country Italy. banana So that is true. She denied it and saw the banana.",
    "Bob: The kind of sparrow is in the class mammal. shed So that is false. He claimed it and saw the shed.",
)
WORDS = [
    ".",
    ":",
    *sorted({word for text in GRAMMAR for word in text.translate({46: None, 58: None}).split()}),
]


def word_level():
    return tokenization.word_level_tokenizer(WORDS)


def byte_level():
    """GPT-2's scheme, merges learnt from two sentences; any text can be spelt."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*GRAMMAR, "Ελλάδα", "日本"], trainer)
    return tokenizer


def fast(tokenizer, **special):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def at(text, character):
    return {"here": np.array([character])}


@pytest.fixture(scope="module")
def spelling():
    return byte_level()


@pytest.fixture(scope="module", params=["stories260k", "babyllama-105"])
def real(request):
    folder = SHARED / "models" / request.param
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    return request.param, tokenization.load_tokenizer(folder)


@pytest.mark.parametrize("text", GRAMMAR)
def test_the_grammar_reads_back(text):
    tokenizer = word_level()
    encoded = tokenization.encode(tokenizer, [text], {}, bos=False, context=100)
    words = [tokenizer.id_to_token(token) for token in encoded.ids[0]]
    assert "".join(words) == text.replace(" ", "")
    assert words == text.replace(".", " .").replace(":", " :").split()
    assert tokenization.unreadable(tokenizer, [text]) == []


def test_what_the_statements_say_reads_back_in_their_own_vocabulary():
    resources = Path(__file__).parents[2] / "workflow" / "resources"
    corpus = {"topics": {"cities": 12, "animals": 12}, "carriers": 8, "answer": "speaker^negated", "seed": 0}
    world = statements.world(corpus, resources)
    tokenizer = tokenization.word_level_tokenizer(statements.vocabulary(world))
    texts = statements.corpus_texts(world, corpus, 300, np.random.default_rng(0))
    assert tokenization.unreadable(tokenizer, texts) == []
    assert tokenizer.get_vocab_size() == 3 + len(set(statements.vocabulary(world)))


def test_special_tokens_come_first_and_pieces_in_order_of_appearance():
    tokenizer = tokenization.word_level_tokenizer(["Guinea-Bissau", "b", "a", "b", "Alice:"])
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary, key=vocabulary.get) == [
        "[PAD]",
        "[BOS]",
        "[UNK]",
        "Guinea",
        "-",
        "Bissau",
        "b",
        "a",
        "Alice",
        ":",
    ]
    assert tokenization.unreadable(tokenizer, ["a Guinea-Bissau b", "A b"]) == [1]


def test_an_empty_vocabulary_is_refused():
    with pytest.raises(UserError, match=r"holds no word"):
        tokenization.word_level_tokenizer([" "])


@given(st.lists(st.sampled_from([*WORDS, "[", "unheard"]), min_size=1, max_size=12), st.data())
@settings(max_examples=60, deadline=None)
def test_a_word_level_token_is_the_word_at_the_mark(words, data):
    text = " ".join(words)
    tokenizer = word_level()
    if {"[", "unheard"} & set(words):
        assert tokenization.unreadable(tokenizer, [text]) == [0]
        with pytest.raises(UserError, match=r"UNK"):
            tokenization.encode(tokenizer, [text], {}, bos=False, context=100)
        return
    character = data.draw(st.sampled_from([i for i, c in enumerate(text) if c != " "]))
    encoded = tokenization.encode(tokenizer, [text], at(text, character), bos=True, context=100)
    position = encoded.positions["here"][0]
    assert encoded.ids[0][0] == tokenizer.token_to_id("[BOS]")
    assert position - 1 == text[: character + 1].count(" ")
    assert tokenizer.id_to_token(encoded.ids[0][position]) == words[position - 1]


@given(st.text(alphabet=string.printable + "éßΩдЁ日本🙂", min_size=1, max_size=20), st.data())
@settings(max_examples=150, deadline=None)
def test_a_byte_level_token_is_the_one_that_completes_the_character(spelling, text, data):
    character = data.draw(st.integers(0, len(text) - 1))
    encoded = tokenization.encode(spelling, [text], at(text, character), bos=False, context=1000)
    # In this scheme a token's name has one letter a byte, so lengths of names count bytes of the text.
    read = np.cumsum([len(spelling.id_to_token(token)) for token in encoded.ids[0]])
    needed = len(text[: character + 1].encode())
    position = encoded.positions["here"][0]
    assert read[-1] == len(text.encode())
    assert read[position] >= needed
    assert position == 0 or read[position - 1] < needed
    assert tokenization.unreadable(spelling, [text]) == []


def test_bos_is_prepended_and_counted():
    text = GRAMMAR[0]
    tokenizer = word_level()
    marks = {"period": np.array([text.index(".")]), "last": np.array([len(text) - 1])}
    without = tokenization.encode(tokenizer, [text], marks, bos=False, context=100)
    with_bos = tokenization.encode(tokenizer, [text], marks, bos=True, context=100)
    assert with_bos.ids[0] == (tokenizer.token_to_id("[BOS]"), *without.ids[0])
    for position in marks:
        assert with_bos.positions[position][0] == without.positions[position][0] + 1
    assert with_bos.positions["last"][0] == len(with_bos.ids[0]) - 1


def test_a_tokenizer_that_adds_its_own_bos_is_not_asked_to(real):
    _, tokenizer = real
    text = "The city of Paris is in France. banana"
    assert tokenizer(text)["input_ids"][0] == tokenizer.bos_token_id
    encoded = tokenization.encode(tokenizer, [text], {}, bos=True, context=256)
    assert list(encoded.ids[0]) == tokenizer(text)["input_ids"]
    assert encoded.ids[0].count(tokenizer.bos_token_id) == 1


def test_positions_in_real_tokenizers(real):
    _, tokenizer = real
    text = "Alice: The city of Paris is not in the country Italy. banana"
    period = text.index(".")
    marks = {
        name: np.array([at])
        for name, at in (
            ("first", 0),
            ("before_period", period - 1),
            ("period", period),
            ("last", len(text) - 1),
        )
    }
    encoded = tokenization.encode(tokenizer, [text], marks, bos=False, context=256)
    prefix = {name: tokenizer.decode(encoded.ids[0][: at[0] + 1]).strip() for name, at in encoded.positions.items()}
    assert prefix == {
        "first": text[: len(prefix["first"])],
        "before_period": text[:period],
        "period": text[: period + 1],
        "last": text,
    }
    assert prefix["first"]


def test_unknown_characters_of_real_tokenizers_are_found(real):
    name, tokenizer = real
    texts = ["The city of Paris.", "The city of Zürich.", "日本", "a </s> b"]
    assert tokenization.unreadable(tokenizer, texts) == {"stories260k": [3], "babyllama-105": [1, 2, 3]}[name]
    if name == "babyllama-105":
        with pytest.raises(UserError, match=r"text 1 \('The city of Zürich\.'\).*'ü' \(character 13\) as <unk>"):
            tokenization.encode(tokenizer, texts, {}, bos=False, context=256)


def test_a_character_that_is_dropped_without_a_trace_is_found():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    assert tokenization.unreadable(tokenizer, ["ab", "acb", "c"]) == [1, 2]
    with pytest.raises(UserError, match=r"text 0.*reads it back as"):
        tokenization.encode(tokenizer, ["acb"], {}, bos=False, context=10)
    with pytest.raises(UserError, match=r"text 0.*no token at all"):
        tokenization.encode(tokenizer, [""], {}, bos=False, context=10)


def test_case_folding_is_not_a_round_trip_and_composition_is():
    folding = word_level()
    folding.normalizer = tokenizers.normalizers.Lowercase()
    assert tokenization.unreadable(folding, ["The"]) == [0]
    composing = byte_level()
    composing.normalizer = tokenizers.normalizers.NFC()
    assert tokenization.unreadable(composing, ["Zu\u0308rich"]) == []


def test_truncation_and_padding_of_a_published_tokenizer_are_switched_off():
    tokenizer = word_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    encoded = tokenization.encode(fast(tokenizer), [GRAMMAR[0]], {}, bos=False, context=100)
    assert len(encoded.ids[0]) == len(GRAMMAR[0].replace(".", " .").replace(":", " :").split())


def test_a_text_longer_than_the_context_is_named():
    length = len(tokenization.encode(word_level(), GRAMMAR[:1], {}, bos=False, context=100).ids[0])
    tokenization.encode(word_level(), GRAMMAR[:1], {}, bos=False, context=length)
    with pytest.raises(UserError, match=rf"text 0 \('Alice: The .*{length + 1} tokens with BOS.* at most {length}"):
        tokenization.encode(word_level(), GRAMMAR[:1], {}, bos=True, context=length)


def test_a_mark_that_no_token_covers_is_named():
    for character, shown in ((6, "' '"), (len(GRAMMAR[0]), "''"), (-1, "''")):
        with pytest.raises(UserError, match=rf"text 0.*character {character} \({shown}\).*'here'"):
            tokenization.encode(word_level(), GRAMMAR[:1], at(GRAMMAR[0], character), bos=False, context=100)


def test_a_tokenizer_without_bos_is_refused_only_when_asked(spelling):
    tokenization.encode(fast(spelling), ["a"], {}, bos=False, context=10)
    for tokenizer in (spelling, fast(spelling)):
        with pytest.raises(UserError, match=r"no BOS token"):
            tokenization.encode(tokenizer, ["a"], {}, bos=True, context=10)


def test_a_slow_tokenizer_is_refused():
    class SlowTokenizer:
        pass

    with pytest.raises(UserError, match=r"SlowTokenizer keeps no offsets"):
        tokenization.encode(SlowTokenizer(), ["a"], {}, bos=False, context=10)


def test_a_saved_tokenizer_is_what_was_saved(tmp_path):
    tokenization.save_tokenizer(word_level(), tmp_path)
    loaded = tokenization.load_tokenizer(tmp_path)
    assert loaded.is_fast
    assert (loaded.pad_token, loaded.bos_token, loaded.unk_token) == ("[PAD]", "[BOS]", "[UNK]")
    for bos in (False, True):
        expected = tokenization.encode(word_level(), GRAMMAR, {}, bos=bos, context=100)
        assert tokenization.encode(loaded, GRAMMAR, {}, bos=bos, context=100).ids == expected.ids
    assert tokenization.unreadable(loaded, [GRAMMAR[0], "Zagreb", "[BOS] Alice"]) == [1, 2]
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_folder_without_a_readable_tokenizer_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}: the tokenizer cannot be read .*tokenizer\.json"):
        tokenization.load_tokenizer(tmp_path)
    tokenization.save_tokenizer(word_level(), tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=rf"{tmp_path}: the tokenizer cannot be read"):
        tokenization.load_tokenizer(tmp_path)


def test_saved_files_are_reproducible_and_readable_by_the_group(tmp_path):
    for folder in ("a", "b"):
        tokenization.save_tokenizer(word_level(), tmp_path / folder)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        assert file.stat().st_mode & stat.S_IRGRP
