"""Activations of one cell: texts that cannot be read, trained weights, a rung and its health."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from counterprobe import (
    activations,
    checkpoints,
    control_health,
    designs,
    extraction,
    manifest,
    statements,
    tokenization,
)
from counterprobe.language_model import Architecture, build, save_revision
from counterprobe.progress import UserError

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
SPEC = {
    "activations": {
        "positions": ["period", "last"],
        "bos": [False, True],
        "primary_bos": False,
        "backend": "fast",
        "dtype": "float32",
        "token_budget": 2048,
    },
    "controls": {"seeds": 2, "embeddings": ["kept", "randomised"]},
    "design": {"unreadable": "error"},
}
CELL = {"model": "m", "revision": "step0", "weights": "gaussian", "design": "factorial"}


@pytest.fixture(scope="module")
def world():
    return statements.world({"topics": {"cities": 8, "animals": 8}, "carriers": 4}, RESOURCES)


@pytest.fixture(scope="module")
def design(world):
    return statements.factorial("factorial", {"blocks": 4}, world)


@pytest.fixture(scope="module")
def checkpoint(world, tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    tokenizer = tokenization.word_level_tokenizer(statements.vocabulary(world))
    model = build(Architecture(layers=2, width=32, heads=2), tokenizer.get_vocab_size(), seed=0)
    folder = save_revision(model, tokenizer, root, 0)
    path = root / "manifest.json"
    manifest.write(path, checkpoints.folder_content(folder, source="train"), {})
    return path


def read(checkpoint, design, weights, folder):
    content = extraction.run(checkpoint, design, weights, SPEC, folder, device="cpu")
    manifest.write(folder / "manifest.json", {"files": manifest.describe_files(folder), **content}, {})
    return activations.open_store(folder / "manifest.json")


def test_trained_weights_are_read_everywhere_and_rungs_with_the_primary_bos(checkpoint, design, tmp_path):
    trained = read(checkpoint, design, "trained", tmp_path / "trained")
    rung = read(checkpoint, design, "gaussian", tmp_path / "gaussian")
    assert set(trained.positions) == {"period", "last"}
    assert trained.bos == (False, True)
    assert (rung.positions, rung.bos) == (("last", "period"), (False,))
    assert rung.units == (("kept", 0), ("kept", 1), ("randomised", 0), ("randomised", 1))
    embedding = [store.matrix("period", False, 0, *unit) for store, unit in ((trained, ()), (rung, ("kept", 1)))]
    assert np.allclose(*embedding)
    draws = [rung.matrix("period", False, 2, "kept", seed) for seed in (0, 1)]
    assert not np.allclose(*draws)
    assert not np.allclose(draws[0], trained.matrix("period", False, 2), atol=1e-3)


def test_health_of_every_unit_stands_beside_the_trained_model(checkpoint, design, tmp_path):
    trained = read(checkpoint, design, "trained", tmp_path / "trained")
    rung = read(checkpoint, design, "gaussian", tmp_path / "gaussian")
    table = control_health.compare(trained, rung, CELL)
    assert set(table.score) >= {"residual_norm", "block_ratio", "participation_ratio", "collapsed"}
    assert len(table[table.score == "collapsed"]) == len(rung.units) * len(rung.layers) * len(rung.positions)


def test_texts_that_cannot_be_read_are_an_error_or_go_with_their_couple(design, world):
    words = [word for word in statements.vocabulary(world) if word != design.item_names[0]]
    tokenizer = tokenization.word_level_tokenizer(words)
    with pytest.raises(UserError, match="unreadable: drop"):
        extraction.readable(design, tokenizer, "error")
    left = extraction.readable(design, tokenizer, "drop")
    lost = design.couples[design.items == 0][0]
    assert set(design.item_names) - set(left.item_names) == {
        design.item_names[item] for item in np.unique(design.items[design.couples == lost])
    }
    designs.check_balanced(left)


def test_a_checkpoint_whose_weights_changed_is_named(checkpoint, design, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint.parent / "step0", copy)
    path = tmp_path / "manifest.json"
    manifest.write(path, checkpoints.folder_content(copy, source="train"), {})
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x01\x02\x03\x04")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        extraction.run(path, design, "trained", SPEC, tmp_path / "out", device="cpu")
