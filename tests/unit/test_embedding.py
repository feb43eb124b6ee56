"""Directions in the embedding matrix: against slow scores, planted classes and noise; vocabularies of every kind."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from counterprobe import embedding, language_model, statements, tokenization
from counterprobe.language_model import Architecture
from counterprobe.progress import UserError

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
SETTINGS = {"folds": 4, "random_labels": 16, "seed": 0}


@given(st.integers(0, 10_000), st.booleans())
def test_delong_is_the_area_under_the_curve_and_its_error_by_structural_components(seed, ties):
    rng = np.random.default_rng(seed)
    labels = rng.permuted(np.repeat([[True], [False]], [7, 12], axis=0).repeat(3, axis=1), axis=0)
    scores = rng.integers(0, 4, (19, 3)).astype(float) if ties else rng.standard_normal((19, 3)) + labels
    found, error = embedding.delong(scores, labels)
    for column in range(3):
        y, s = labels[:, column], scores[:, column]
        assert found[column] == pytest.approx(roc_auc_score(y, s))
        wins = (s[y][:, None] > s[~y]) + 0.5 * (s[y][:, None] == s[~y])
        variance = wins.mean(axis=1).var(ddof=1) / 7 + wins.mean(axis=0).var(ddof=1) / 12
        assert error[column] == pytest.approx(np.sqrt(variance))


def test_a_planted_class_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    label = np.where(np.arange(300) < 40, 1, np.where(np.arange(300) < 280, 0, -1))
    noise = rng.standard_normal((300, 400))
    planted = noise + np.outer(label == 1, rng.standard_normal(400)) * 0.5
    found = embedding.separate(planted, label, 4, 32, np.random.default_rng(1))
    assert found.auroc > 0.95
    assert found.n_tokens == 280
    assert abs(found.random.mean() - 0.5) < 0.06
    # More dimensions than tokens: in-sample the direction of any label separates it.
    nothing = embedding.separate(noise, label, 4, 32, np.random.default_rng(1))
    assert abs(nothing.auroc - 0.5) < 4 * nothing.error
    inside = noise[label >= 0]
    y = label[label >= 0] == 1
    assert roc_auc_score(y, inside @ (inside[y].mean(axis=0) - inside[~y].mean(axis=0))) > 0.95


def test_intervals_cover_the_area_of_a_known_pair_of_gaussians():
    rng = np.random.default_rng(0)
    label = (np.arange(200) < 60).astype(int)
    inside = 0
    for _ in range(150):
        matrix = rng.standard_normal((200, 1)) + label[:, None]
        found = embedding.separate(matrix, label, 2, 2, rng)
        # Φ(1/√2): one standard deviation between the classes, and one dimension whose direction is always right.
        inside += abs(found.auroc - 0.7602) < 1.96 * found.error
    assert 132 <= inside <= 150


def test_matrices_that_nobody_trained_keep_what_they_say_and_no_more():
    rng = np.random.default_rng(0)
    matrix = (rng.standard_normal((4000, 6)) @ rng.standard_normal((6, 6)) + 3).astype(np.float32)
    drawn = embedding.matched_gaussian(matrix, np.random.default_rng(1))
    assert np.allclose(drawn.mean(axis=0), matrix.mean(axis=0), atol=0.3)
    assert np.allclose(np.cov(drawn.T), np.cov(matrix.T), rtol=0.15, atol=0.4)
    shuffled = embedding.shuffled_columns(matrix, np.random.default_rng(1))
    assert np.array_equal(np.sort(shuffled, axis=0), np.sort(matrix, axis=0))
    assert abs(np.corrcoef(shuffled.T)[0, 1]) < 0.06
    # One permutation for all rows is no control: nothing changes.
    label = (np.arange(4000) < 500).astype(int)
    moved = matrix[:, rng.permutation(6)]
    a, b = (embedding.separate(m, label, 4, 2, np.random.default_rng(2)).auroc for m in (matrix, moved))
    assert a == pytest.approx(b)


def fast(model, pre=None, decoder=None):
    from transformers import PreTrainedTokenizerFast

    made = tokenizers.Tokenizer(model)
    if pre is not None:
        made.pre_tokenizer = pre
    if decoder is not None:
        made.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=made)


def test_byte_level_tokens_are_read_as_bytes():
    pieces = ["Ġ", "Ġcat", "Ġcats", "cat", "Cat", "Ã©", "Ã", "7", "ĊĊ"]
    model = tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, [])
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = embedding.vocabulary(fast(model, level, tokenizers.decoders.ByteLevel()))
    assert words.texts == (" ", " cat", " cats", "cat", "Cat", "é", None, "7", "\n\n")
    assert words.spaced
    found = embedding.properties(words, None)
    assert found["uppercase"].tolist() == [-1, 0, 0, 0, 1, 0, -1, -1, -1]
    assert found["leading_space"].tolist() == [-1, 1, 1, 0, 0, 0, -1, -1, -1]
    assert found["digit"].tolist() == [-1, 0, 0, 0, 0, 0, -1, 1, -1]
    assert found["plural"].tolist() == [-1] * 9  # three letters


def test_every_byte_has_a_character_of_its_own():
    level = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    assert set(embedding._BYTES) == set(level)
    assert sorted(embedding._BYTES.values()) == list(range(256))


def test_a_vocabulary_whose_spaces_are_unknown_is_refused_by_name():
    model = tokenizers.models.WordPiece({"[UNK]": 0, "cat": 1, "##s": 2}, unk_token="[UNK]")
    with pytest.raises(UserError, match=r"WordPiece.*run\.neurons"):
        embedding.vocabulary(fast(model))


def test_classes_of_the_corpus_are_those_of_its_words():
    world = statements.world({"topics": {"cities": 8, "animals": 8}, "carriers": 8}, RESOURCES)
    made = tokenization.word_level_tokenizer(statements.vocabulary(world))
    from transformers import PreTrainedTokenizerFast

    words = embedding.vocabulary(PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]"))
    assert not words.spaced
    assert words.texts[:3] == (None, None, None)
    found = embedding.properties(words, world)
    assert "leading_space" not in found
    assert (found["name"] == 1).sum() == 16
    assert (found["female_name"] == 1).sum() == (found["female_name"] == 0).sum() == 8
    assert (found["city"] == 1).sum() <= 8
    named = {words.texts[i] for i in np.flatnonzero(found["fruit"] == 1)}
    assert named == {fruit for fruit, _ in world.suffix_pairs}


@pytest.mark.parametrize("model", ["babyllama-105", "stories260k"])
def test_a_sentencepiece_vocabulary_of_a_real_model(shared, model):
    folder = shared / "models" / model
    if not folder.is_dir():
        pytest.skip(f"no {model} in shared/models")
    words = embedding.vocabulary(tokenization.load_tokenizer(folder))
    matrix, tied = embedding.token_embeddings(folder)
    config = json.loads((folder / "config.json").read_text())
    assert matrix.shape == (config["vocab_size"], config["hidden_size"])
    assert tied == config["tie_word_embeddings"]
    assert words.spaced
    assert not any(text and "▁" in text for text in words.texts)
    label = embedding.properties(words, None)["uppercase"]
    assert (label == 1).sum() > 5
    assert (label == 0).sum() > 5


def test_tied_and_untied_embeddings_are_told_apart_and_a_missing_one_is_named(tmp_path):
    import transformers

    tied = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=1))
    tied.save_pretrained(tmp_path / "tied")
    untied = language_model.build(Architecture(layers=1, width=16, heads=2), 11, 0)
    untied.save_pretrained(tmp_path / "untied")
    for name, model in (("tied", tied), ("untied", untied)):
        matrix, found = embedding.token_embeddings(tmp_path / name)
        assert found == (name == "tied")
        assert np.array_equal(matrix, model.get_input_embeddings().weight.detach().numpy())
    with pytest.raises(UserError, match="no token embedding"):
        embedding.token_embeddings(tmp_path)
