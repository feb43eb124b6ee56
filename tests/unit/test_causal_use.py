"""Swaps in a model: against a plain pass with the residual stream written by hand, and where the answer is known."""

from pathlib import Path

import numpy as np
import pytest
import torch

from counterprobe import (
    activations,
    causal_use,
    checkpoints,
    coordinate_swaps,
    designs,
    language_model,
    manifest,
    splits,
    statements,
    tokenization,
)
from counterprobe.progress import UserError

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
CELL = {"model": "m", "revision": "step0", "weights": "trained", "design": "twin"}
SPEC = {
    "use": {"layers": [1], "items": 4, "nulls": 19, "beside": 3, "seed": 0},
    "activations": {"positions": ["last"], "primary_bos": False},
    "probes": {"outer_folds": 4, "seed": 0},
    "statistics": {"resamples": 100, "confidence": 0.95},
    "design": {"protocols": ["carriers"]},
}


@pytest.fixture(scope="module")
def world():
    corpus = {"topics": {"cities": 8, "animals": 8}, "carriers": 8, "answer": "speaker^negated"}
    return statements.world(corpus, RESOURCES)


@pytest.fixture(scope="module")
def design(world):
    return statements.factorial("twin", {"blocks": 4}, world)


@pytest.fixture(scope="module")
def checkpoint(world, tmp_path_factory):
    """A model of random weights, large enough for its answers to differ from text to text."""
    root = tmp_path_factory.mktemp("model")
    tokenizer = tokenization.word_level_tokenizer(statements.vocabulary(world))
    model = language_model.build(
        language_model.Architecture(layers=2, width=32, heads=2), tokenizer.get_vocab_size(), seed=0
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    folder = language_model.save_revision(model, tokenizer, root, 0)
    path = root / "manifest.json"
    manifest.write(path, checkpoints.folder_content(folder, source="train"), {})
    return path


@pytest.fixture(scope="module")
def loaded(checkpoint):
    source = checkpoints.open_checkpoint(checkpoint)
    return language_model.load(source), tokenization.load_tokenizer(source)


@pytest.fixture(scope="module")
def store(loaded, design, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    reading = {"positions": ["period", "last"], "bos": [False], "dtype": "float32", "token_budget": 2048}
    activations.extract(*loaded, design, reading, folder, backend="fast")
    manifest.write(folder / "manifest.json", {"files": manifest.describe_files(folder)}, {})
    return activations.open_store(folder / "manifest.json")


def folds_of(design):
    fold_of = np.full(len(design.texts), -1)
    for index, fold in enumerate(splits.folds(design, "carriers", 0)):
        fold_of[fold.test] = index
    return fold_of


@pytest.mark.parametrize(("position", "layer"), [("period", 0), ("period", 1), ("last", 1), ("last", 2)])
def test_a_shift_is_what_a_plain_pass_with_that_residual_says(loaded, design, position, layer):
    model, tokenizer = loaded
    chosen = np.array([0, 5, 17, 40])
    groups = list(causal_use.group(design, chosen, tokenizer, model, position=position, bos=False))
    swap = causal_use._Swap(model, tokenizer, groups, design, chosen, layer)
    shifts = np.random.default_rng(0).standard_normal((2, len(chosen), 32))
    found = swap.outcome(shifts)
    marks = {position: design.marks[position]}
    for r, readout in enumerate(design.readouts.values()):
        for place, text in enumerate(chosen):
            at = tokenization.encode(tokenizer, design.texts, marks, bos=False, context=64).positions[position][text]
            ids = torch.tensor(tokenization.encode(tokenizer, [readout.prefixes[text]], {}, bos=False, context=64).ids)
            right, wrong = (
                language_model.next_token(tokenizer, readout.prefixes[text], words[text])
                for words in (readout.positive, readout.negative)
            )
            for k in (0, 1):
                move = torch.tensor(shifts[k, place], dtype=torch.float32)
                blocks = activations.decoder_blocks(model)

                def add(hidden, at=at, move=move):
                    moved = hidden.clone()
                    moved[:, at] += move
                    return moved

                def before(block, arguments, keywords, add=add):
                    return (add(arguments[0]), *arguments[1:]), keywords

                def after(block, arguments, output, add=add):
                    return (add(output[0]), *output[1:]) if isinstance(output, tuple) else add(output)

                handle = (
                    blocks[layer - 1].register_forward_hook(after)
                    if layer
                    else blocks[0].register_forward_pre_hook(before, with_kwargs=True)
                )
                logits = model(ids, use_cache=False).logits[0, -1].double()
                handle.remove()
                assert found.log_odds[k, r, place] == pytest.approx(float(logits[right] - logits[wrong]), abs=1e-4)


def test_no_shift_changes_nothing_and_hooks_are_gone(loaded, design):
    model, tokenizer = loaded
    chosen = np.arange(0, 64, 3)
    groups = list(causal_use.group(design, chosen, tokenizer, model, position="period", bos=False))
    swap = causal_use._Swap(model, tokenizer, groups, design, chosen, 1)
    still = swap.outcome(np.zeros((1, len(chosen), 32)))
    assert np.abs(still.divergence).max() < 1e-5
    for r, readout in enumerate(design.readouts.values()):
        words = [[side[i] for i in chosen] for side in (readout.prefixes, readout.positive, readout.negative)]
        expected = language_model.answers(model, tokenizer, *words, bos=False)
        assert np.allclose(swap.undisturbed[r], expected, atol=1e-4)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in activations.decoder_blocks(model))


def test_couples_evenly_from_the_folds_with_as_many_carriers_as_there_are(design):
    fold_of = folds_of(design)
    chosen = causal_use.sample(design, fold_of, 8, 0)
    couples = np.unique(design.couples[chosen])
    assert set(fold_of[chosen]) == {0, 1, 2, 3}
    assert 8 <= len(np.unique(design.items[chosen])) < 12
    for factor, units in design.carriers.items():
        of_couple = max(len(np.unique(units[design.couples == couple])) for couple in couples)
        available = len(np.unique(units))
        assert len(np.unique(units[chosen])) == min(available, of_couple * len(couples)), factor


def test_of_texts_that_no_swapped_feature_tells_apart_one_is_kept(design):
    chosen = causal_use.sample(design, folds_of(design), 8, 0)
    cells = np.stack([design.items, *(design.factors[name] for name in ("speaker", "negated", "match"))], axis=1)
    assert len(np.unique(cells[chosen], axis=0)) == len(chosen)
    of_items = np.isin(design.items, design.items[chosen])
    assert len(np.unique(cells[of_items], axis=0)) == len(chosen)
    for target in causal_use.targets_of(design):
        assert designs.parity(design, target)[chosen].mean() == 0.5


def test_the_table_has_every_target_with_its_nulls(checkpoint, store, design):
    table = causal_use.measure(checkpoint, store, design, SPEC, CELL, device="cpu")
    targets = {"speaker", "negated", "match", "negated^match", "speaker^negated", "speaker^match"}
    assert set(table.target) == targets
    moved = table[(table.probe == coordinate_swaps.WALSH) & (table.score == "divergence")]
    assert set(moved.target) == targets
    nulls = table[(table.probe == "null") & (table.score == "divergence")].groupby(["target", "control"]).size()
    for target in targets:
        assert nulls[target, "within_cell"] == nulls[target, "dichotomy"] == 19
        assert nulls[target, "isotropic"] == nulls[target, "total"] == 3
    # Random weights answer nothing, so no effect is claimed on what they do not say.
    answered = table[table.score == "effect"]
    assert (answered.n_texts == table.n_texts.iloc[0]).all()


def test_a_layer_that_does_not_exist_is_named(checkpoint, store, design):
    spec = SPEC | {"use": SPEC["use"] | {"layers": [7]}}
    with pytest.raises(UserError, match="there is no layer 7"):
        causal_use.measure(checkpoint, store, design, spec, CELL, device="cpu")


def test_targets_are_the_factors_in_question_and_their_xors(design):
    assert causal_use.targets_of(design) == [
        name
        for name in designs.targets(design)
        if name in {"speaker", "negated", "match", "negated^match", "speaker^negated", "speaker^match"}
    ]
