"""Dictionaries on data whose features are known, and their files."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from counterprobe import dictionaries, dictionary_training, streaming_ica
from counterprobe.dictionary_training import Recipe, Schedule
from counterprobe.progress import UserError


def planted(features, width, active, rows, seed=11):
    """Sparse non-negative codes of independent features: (directions, activations)."""
    draw = torch.Generator().manual_seed(seed)
    directions = torch.randn(features, width, generator=draw)
    directions /= directions.norm(dim=1, keepdim=True)
    live = torch.rand(rows, features, generator=draw) < active / features
    return directions, (live * (0.5 + torch.rand(rows, features, generator=draw))) @ directions


@pytest.fixture(scope="module")
def overcomplete():
    return planted(256, 64, 3, 30_000)


@pytest.fixture(scope="module")
def learned(overcomplete):
    """Trained, and with a frozen decoder."""
    recipes = [Recipe(384, 4, 0), Recipe(384, 4, 0, frozen=True)]
    return dictionary_training.train(overcomplete[1], recipes, Schedule(400, 512, 0.003), seed=0)


def share(dictionary, directions):
    return float(dictionary_training.recovered(dictionary.decoder, directions).float().mean())


def test_an_sae_finds_sparse_features_and_random_rows_do_not(overcomplete, learned):
    directions, x = overcomplete
    sae, frozen = learned.dictionaries
    assert share(sae, directions) >= 0.95
    random = dictionaries.random_decoder(x.mean(0), 384, 4, seed=0)
    assert share(random, directions) < 0.05
    assert share(frozen, directions) < 0.05
    spread = (x - x.mean(0)).square().sum()
    unexplained = {one.name: float((one.reconstruct(x) - x).square().sum() / spread) for one in (sae, frozen, random)}
    # The loss of the last steps is that of the finished dictionary: nothing was lost when the scale was folded in.
    assert unexplained["sae"] == pytest.approx(learned.losses[0], abs=0.02)
    assert unexplained["sae"] < unexplained["frozen_decoder"] < unexplained["random"]


def test_ica_finds_them_where_it_has_a_direction_for_each_and_not_where_it_has_not(overcomplete):
    few, complete = planted(64, 64, 3, 20_000, seed=12)
    found = streaming_ica.fit(streaming_ica.chunked(complete, 4096))
    basis = dictionaries.from_basis("ica", found.unmixing, found.mixing.T, found.mean, 3)
    assert share(basis, few) >= 0.95
    many, x = overcomplete
    too_few = streaming_ica.fit(streaming_ica.chunked(x, 4096), iterations=30)
    assert share(dictionaries.from_basis("ica", too_few.unmixing, too_few.mixing.T, too_few.mean, 3), many) < 0.3


def test_a_dictionary_does_not_depend_on_what_is_trained_beside_it(overcomplete):
    x = overcomplete[1][:2000]
    schedule = Schedule(30, 128)
    alone = dictionary_training.train(x, [Recipe(96, 4, 1)], schedule, seed=0)
    recipes = [Recipe(64, 3, 0), Recipe(96, 8, 0), Recipe(96, 4, 1)]
    together = dictionary_training.train(x, recipes, schedule, seed=0)
    assert [(one.size, one.k, one.seed) for one in together.dictionaries] == [(64, 3, 0), (96, 8, 0), (96, 4, 1)]
    # Dead latents restart where a shared generator says, so only what comes before the first restart is compared.
    assert together.losses[2] == pytest.approx(alone.losses[0], rel=0.1)


@pytest.mark.parametrize("sparse", [1, 10**6])
def test_gradients_are_those_of_automatic_differentiation(overcomplete, monkeypatch, sparse):
    monkeypatch.setattr(dictionary_training, "SPARSE", sparse)
    x = overcomplete[1][:64]
    recipes = [Recipe(32, 4, 0), Recipe(32, 2, 1)]
    stack = dictionary_training._Stack(recipes, 64, torch.device("cpu"), Schedule(10, 64))
    leaves = [tensor.clone().requires_grad_() for tensor in stack.parameters]
    encoder, encoder_bias, bias, decoder = leaves
    for place, recipe in enumerate(recipes):
        before = x @ encoder[place].T + encoder_bias[place]
        values, places = before.topk(recipe.k, dim=1)
        codes = torch.zeros_like(before).scatter(1, places, values.relu())
        (codes @ decoder[place] + bias[place] - x).square().sum(1).mean().backward()
    stack.step(x, 0.0, last=False)
    places = [(x @ row.T).topk(one.k, dim=1) for row, one in zip(leaves[0].detach(), recipes, strict=True)]
    for fired, (values, latents) in zip(stack.fired, places, strict=True):
        assert set(fired.nonzero()[:, 0].tolist()) == set(latents[values > 0].tolist())
    for ours, leaf in zip(stack.parameters, leaves, strict=True):
        torch.testing.assert_close(ours.grad, leaf.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "recipe", "said"),
    [
        (torch.ones(64, 8), Recipe(16, 2, 0), "all activations are equal"),
        (torch.full((64, 8), float("nan")), Recipe(16, 2, 0), "not finite"),
        (torch.randn(64, 8), Recipe(16, 17, 0), "k = 17 of 16"),
    ],
)
def test_what_cannot_be_learned_is_said(x, recipe, said):
    with pytest.raises(UserError, match=said):
        dictionary_training.train(x, [recipe], Schedule(10, 16), seed=0)


def test_a_rate_that_is_too_high_is_said():
    x = torch.randn(64, 8)
    with pytest.raises(UserError, match=r"NaN; lower dictionaries\.learning_rate"):
        dictionary_training.train(x, [Recipe(16, 2, 0)], Schedule(20, 16, learning_rate=float("inf")), seed=0)


def test_a_split_basis_keeps_the_largest_in_absolute_value():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    neurons = dictionaries.neuron_basis(torch.zeros(6), 2)
    places = x.abs().topk(2, dim=1).indices
    wanted = torch.zeros_like(x).scatter(1, places, x.gather(1, places))
    torch.testing.assert_close(neurons.reconstruct(x), wanted)
    covariance = torch.cov(x.T, correction=0)
    pca = dictionaries.principal_components(x.mean(0), covariance, 6)
    torch.testing.assert_close(pca.reconstruct(x), x, rtol=1e-4, atol=1e-5)


def test_files_hold_what_was_written(tmp_path, learned):
    sae = learned.dictionaries[0]
    dictionaries.write(sae, tmp_path / "a", model="m", layer=2, bos=True)
    back = dictionaries.read(tmp_path / "a", width=64, layer=2)
    x = torch.randn(20, 64)
    assert torch.equal(back.reconstruct(x), sae.reconstruct(x))
    assert (back.name, back.k, back.seed, back.size) == ("sae", 4, 0, 384)
    settings = json.loads((tmp_path / "a" / "cfg.json").read_text())
    assert settings["architecture"] == "topk"
    assert (settings["d_in"], settings["d_sae"], settings["k"]) == (64, 384, 4)
    assert settings["metadata"]["hook_name"] == "blocks.1.hook_resid_post"
    assert set(load_file(tmp_path / "a" / "sae_weights.safetensors")) == {"W_enc", "b_enc", "W_dec", "b_dec"}


def published(folder, width=8, size=12, tensors=(), **settings):
    """A file as SAELens writes it, without a checksum of ours."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(0)
    made = {"W_enc": torch.randn(width, size, generator=draw), "b_enc": torch.randn(size, generator=draw)}
    made |= {"W_dec": torch.randn(size, width, generator=draw), "b_dec": torch.randn(width, generator=draw)}
    save_file(made | dict(tensors), folder / "sae_weights.safetensors")
    cfg = {"architecture": "standard", "metadata": {"hook_name": "blocks.1.hook_resid_pre"}} | settings
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return made | dict(tensors)


def test_published_files_are_read_with_what_they_leave_to_run_time(tmp_path):
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    w = published(tmp_path / "standard", apply_b_dec_to_input=False)
    wanted = (x @ w["W_enc"] + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(dictionaries.read(tmp_path / "standard", layer=1).reconstruct(x), wanted)
    w = published(tmp_path / "jump", architecture="jumprelu", tensors={"threshold": torch.full((12,), 0.5)})
    before = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    wanted = (before * (before > 0.5)) @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(dictionaries.read(tmp_path / "jump").reconstruct(x), wanted)
    w = published(tmp_path / "scaled", architecture="topk", k=3, rescale_acts_by_decoder_norm=True)
    norms = w["W_dec"].norm(dim=1)
    before = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms
    values, places = before.topk(3, dim=1)
    codes = torch.zeros_like(before).scatter(1, places, values.relu())
    wanted = (codes / norms) @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(dictionaries.read(tmp_path / "scaled").reconstruct(x), wanted)
    published(tmp_path / "centred", model_from_pretrained_kwargs={"center_writing_weights": True})
    centred = dictionaries.read(tmp_path / "centred")
    torch.testing.assert_close(centred.reconstruct(x + 3), centred.reconstruct(x), rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_named(tmp_path):
    published(tmp_path / "a")
    with pytest.raises(UserError, match="made for width 8, and the model's is 16"):
        dictionaries.read(tmp_path / "a", width=16)
    with pytest.raises(UserError, match=r"made for blocks.1.hook_resid_pre, and layer 2 is blocks.1.hook_resid_post"):
        dictionaries.read(tmp_path / "a", layer=2)
    published(tmp_path / "b", architecture="gated")
    with pytest.raises(UserError, match="'gated' is none of"):
        dictionaries.read(tmp_path / "b")
    published(tmp_path / "c", normalize_activations="layer_norm")
    with pytest.raises(UserError, match="normalised at run time"):
        dictionaries.read(tmp_path / "c")
    published(tmp_path / "d", tensors={"b_dec": torch.full((8,), float("nan"))})
    with pytest.raises(UserError, match="b_dec has entries that are not finite"):
        dictionaries.read(tmp_path / "d")
    with pytest.raises(UserError, match=r"no cfg.json"):
        dictionaries.read(tmp_path / "nowhere")


def test_a_changed_byte_is_seen(tmp_path):
    random = dictionaries.random_decoder(torch.zeros(8), 16, 2, seed=0)
    dictionaries.write(random, tmp_path, model="m", layer=0, bos=False)
    data = bytearray((tmp_path / "sae_weights.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "sae_weights.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="checksum"):
        dictionaries.read(tmp_path, layer=0)


def test_matches_are_symmetric_cosines():
    rows = torch.eye(3)
    assert np.allclose(dictionary_training.best_match(-2 * rows[:2], rows), 1)
    assert np.allclose(dictionary_training.best_match(torch.ones(1, 3), rows), 1 / np.sqrt(3))
