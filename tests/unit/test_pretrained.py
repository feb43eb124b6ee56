"""Dictionaries that others trained: from a folder and from a hub, whole or refused, and fitting the model or refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from loopback_hub import Hub

from counterprobe import checkpoints, dictionaries, manifest, pretrained
from counterprobe.checkpoints import Patience
from counterprobe.progress import UserError

REPO, INSIDE = "org/saes", "blocks.6.hook_resid_pre"
WIDTH, SIZE = 8, 24


def published(folder, hook="blocks.6.hook_resid_pre", **settings):
    """A file as SAELens 2 wrote it: the hook point under its old name, no word on what is centred."""
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (WIDTH, SIZE), "b_enc": (SIZE,), "W_dec": (SIZE, WIDTH), "b_dec": (WIDTH,)}
    save_file({name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, folder / pretrained.WEIGHTS)
    cfg = {"hook_point": hook, "d_in": WIDTH, "d_sae": SIZE, "normalize_activations": False, **settings}
    (folder / pretrained.CONFIG).write_text(json.dumps(cfg))
    return folder


@pytest.fixture
def root(tmp_path):
    folder = published(tmp_path / "hub" / REPO / "main" / INSIDE)
    (folder / "sparsity.safetensors").write_bytes(b"another file")
    published(tmp_path / "hub" / REPO / "main" / "blocks.7.hook_resid_pre", hook="blocks.7.hook_resid_pre")
    return tmp_path / "hub"


@pytest.fixture
def entry():
    return {"source": "hub", "model": "gpt2", "repo": REPO, "revision": "main", "folder": INSIDE, "centred": True}


def register(hub, tmp_path, entry):
    return pretrained.register(
        entry, endpoint=hub.endpoint, cache_dir=tmp_path / "cache", patience=Patience(attempts=2, first_wait=0.01)
    )


def test_two_files_of_a_repository_are_fetched_and_lead_back_to_the_dictionary(root, tmp_path, entry):
    with Hub(root) as hub:
        content = register(hub, tmp_path, entry)
        asked = {request.path for request in hub.requests if request.method == "GET" and "/resolve/" in request.path}
        assert {path.rpartition("/")[2] for path in asked} == {"cfg.json", "sae_weights.safetensors"}
        assert content["commit"] == hub.commit(REPO, "main")
        before = len(hub.requests)
        assert register(hub, tmp_path, entry) == content
        # The second time the hub says where the revision stands, and what is there stays.
        assert not any("/resolve/" in request.path for request in hub.requests[before:])
    manifest.write(tmp_path / "manifest.json", content, {})
    folder = checkpoints.open_checkpoint(tmp_path / "manifest.json", cache_dir=tmp_path / "cache") / content["inside"]
    layer = dictionaries.layer_in(folder, 12)
    assert layer == 6
    found = dictionaries.read(folder, width=WIDTH, layer=layer)
    assert (found.width, found.size, found.activation, found.centred) == (WIDTH, SIZE, "relu", False)
    assert content["centred"] is True


def test_a_flipped_byte_is_fetched_again_and_one_that_stays_is_refused(root, tmp_path, entry):
    with Hub(root) as hub:
        hub.inject("flip", "sae_weights", after=200)
        content = register(hub, tmp_path, entry)
        assert content["files"][f"{INSIDE}/sae_weights.safetensors"]["sha256"] == manifest.sha256_file(
            root / REPO / "main" / INSIDE / "sae_weights.safetensors"
        )
    with Hub(root) as hub:
        hub.inject("flip", "sae_weights", after=200, times=None)
        with pytest.raises(UserError, match="arrived 2 times with another checksum"):
            pretrained.register(entry, endpoint=hub.endpoint, cache_dir=tmp_path / "another")


def test_a_folder_that_is_not_there_is_named_with_those_that_are(root, tmp_path, entry):
    with Hub(root) as hub:
        with pytest.raises(UserError, match=r"no blocks\.9.*cfg\.json; `folder` is one of blocks\.6.*, blocks\.7"):
            register(hub, tmp_path, {**entry, "folder": "blocks.9.hook_resid_pre"})
        with pytest.raises(UserError, match="no such revision"):
            register(hub, tmp_path, {**entry, "revision": "other"})
        with pytest.raises(UserError, match="no such repository"):
            register(hub, tmp_path, {**entry, "repo": "org/none"})


def test_a_folder_on_this_machine(tmp_path):
    folder = published(tmp_path / "mine")
    content = pretrained.register({"source": "directory", "model": "m", "path": str(folder)})
    manifest.write(tmp_path / "manifest.json", content, {})
    assert checkpoints.open_checkpoint(tmp_path / "manifest.json") / content["inside"] == folder
    assert content["centred"] is None
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"has .* bytes where the manifest says"):
        checkpoints.open_checkpoint(tmp_path / "manifest.json")
    with pytest.raises(UserError, match="where its header says"):
        pretrained.register({"source": "directory", "model": "m", "path": str(folder)})
    weights.unlink()
    with pytest.raises(UserError, match=r"no sae_weights\.safetensors; give a folder in SAELens's layout"):
        pretrained.register({"source": "directory", "model": "m", "path": str(folder)})


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("blocks.6.attn.hook_z", r"made for blocks\.6\.attn\.hook_z; only the residual stream is read"),
        ("", "made for no hook point; only the residual stream"),
        ("blocks.6.hook_resid_post", r"made for blocks\.6\.hook_resid_post, and the model has 6 blocks"),
    ],
)
def test_a_hook_point_that_the_model_does_not_have_is_refused(tmp_path, hook, said):
    with pytest.raises(UserError, match=said):
        dictionaries.layer_in(published(tmp_path / "a", hook=hook), 6)
    assert dictionaries.layer_in(published(tmp_path / "b", hook="blocks.5.hook_resid_post"), 6) == 6
