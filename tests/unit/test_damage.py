"""Every kind of artefact, cut short or with one byte changed, stops the next job that reads it, and is named."""

import json
import random
from pathlib import Path

import pytest
import torch

from counterprobe import (
    activations,
    checkpoints,
    checksum,
    design_audit,
    designs,
    extraction,
    manifest,
    statements,
    superposition_cells,
    tables,
    tokenization,
)
from counterprobe.checkpoints import HubFile, HubRevision
from counterprobe.language_model import Architecture, build, save_revision
from counterprobe.progress import UserError

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
FLIPS = 25


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    """name -> (file to damage, what the next job does with it)."""
    root = tmp_path_factory.mktemp("artefacts")
    world = statements.world({"topics": {"cities": 8, "animals": 8}, "carriers": 4}, RESOURCES)
    design = statements.factorial("factorial", {"blocks": 4}, world)
    designs.write(design, root / "design.parquet")
    (root / "audit.parquet").write_bytes(design_audit.audit(design, ["carriers"]).to_parquet())
    training = root / "training"
    training.mkdir()
    tokenizer = tokenization.word_level_tokenizer(statements.vocabulary(world))
    model = build(Architecture(layers=1, width=16, heads=2), tokenizer.get_vocab_size(), seed=0)
    folder = save_revision(model, tokenizer, training, 8)
    manifest.write(training / "manifest.json", {"files": manifest.describe_files(training)}, {})
    checkpoint = root / "checkpoint.json"
    manifest.write(checkpoint, checkpoints.trained_content(training / "manifest.json", "step8"), {})
    reading = {"positions": ["period"], "bos": [False], "backend": "fast", "dtype": "float32", "token_budget": 2048}
    store = root / "activations"
    store.mkdir()
    spec = {"activations": reading, "design": {"unreadable": "error"}}
    content = extraction.run(checkpoint, design, "trained", spec, store, device="cpu")
    manifest.write(store / "manifest.json", {"files": manifest.describe_files(store), **content}, {})
    row = {"model": "m", "revision": "step8", "step": 8, "weights": "trained", "design": "factorial"}
    row |= {"score": "accuracy", "estimate": 0.5, "n_texts": 10, "n_groups": 5}
    tables.write(tables.frame([{**tables.NOT_APPLICABLE, **row}]), root / "part.parquet")
    network = superposition_cells.network_row(
        experiment="trained", network="init", target="and", score="accuracy", seed=0, estimate=0.5
    )
    superposition_cells.write(superposition_cells.networks([network]), root / "toys.parquet")
    (root / "directions.safetensors").write_bytes(checksum.safetensors({"w": torch.randn(3, 4)}))
    resolved = HubRevision("o/m", "main", "c0ffee", (HubFile("config.json", 3, None, "ab12"),))
    (root / "resolved.json").write_text(json.dumps(checkpoints.write_resolved(resolved), indent=2))
    weights = folder / "model.safetensors"

    def register():
        checkpoints.trained_content(training / "manifest.json", "step8")

    return {
        "design": (root / "design.parquet", lambda: designs.read(root / "design.parquet")),
        "audit": (root / "audit.parquet", lambda: design_audit.gather([root / "audit.parquet"])),
        "manifest of a training": (training / "manifest.json", register),
        "weights just trained": (weights, register),
        "weights of a checkpoint": (weights, lambda: checkpoints.open_checkpoint(checkpoint)),
        "manifest of a checkpoint": (checkpoint, lambda: checkpoints.open_checkpoint(checkpoint)),
        "resolved revision": (root / "resolved.json", lambda: checkpoints.read_resolved(root / "resolved.json")),
        "manifest of activations": (
            store / "manifest.json",
            lambda: activations.open_store(store / "manifest.json"),
        ),
        "shard": (store / "period.nobos.layer_01.npy", lambda: activations.open_store(store / "manifest.json")),
        "design of activations": (store / "design.parquet", lambda: designs.read(store / "design.parquet")),
        "part of a table": (root / "part.parquet", lambda: tables.gather([root / "part.parquet"])),
        "table": (root / "part.parquet", lambda: tables.read(root / "part.parquet")),
        "toy networks": (root / "toys.parquet", lambda: superposition_cells.read(root / "toys.parquet")),
        "directions": (
            root / "directions.safetensors",
            lambda: checksum.read_safetensors(root / "directions.safetensors"),
        ),
    }


KINDS = (
    "design",
    "audit",
    "manifest of a training",
    "weights just trained",
    "weights of a checkpoint",
    "manifest of a checkpoint",
    "resolved revision",
    "manifest of activations",
    "shard",
    "design of activations",
    "part of a table",
    "table",
    "toy networks",
    "directions",
)


def damages(whole: bytes) -> list[bytes]:
    """Cut short by one byte, by half, to nothing; and single bits flipped all over the file."""
    draw = random.Random(0)
    cut = [whole[:-1], whole[: len(whole) // 2], b""]
    flipped = []
    for _ in range(FLIPS):
        changed = bytearray(whole)
        changed[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        flipped.append(bytes(changed))
    return cut + flipped


@pytest.mark.parametrize("kind", KINDS)
def test_damage_stops_the_next_job_and_is_named(artefacts, kind):
    file, consume = artefacts[kind]
    whole = file.read_bytes()
    consume()
    try:
        for damaged in damages(whole):
            if file.suffix == ".json" and same_json(damaged, whole):
                continue
            file.write_bytes(damaged)
            with pytest.raises(UserError, match=file.name):
                consume()
    finally:
        file.write_bytes(whole)
    consume()


def same_json(one: bytes, other: bytes) -> bool:
    """A missing last line feed, or one blank for another, changes nothing in JSON."""
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False
