"""Moves of one token, where the answer is known: a network that reads one direction and no other."""

import numpy as np
import pytest
import torch
import transformers

from counterprobe import dictionaries, replacement, sensitivity
from counterprobe.replacement import Batch, Replacing, Surroundings

WIDTH = 8


@pytest.fixture(scope="module")
def model():
    """A plain Llama of one block that does nothing; the head reads the first two coordinates only."""
    config = transformers.LlamaConfig(
        vocab_size=12, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    made = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    block = made.model.layers[0]
    block.self_attn.o_proj.weight.zero_()
    block.mlp.down_proj.weight.zero_()
    made.model.embed_tokens.weight.normal_().mul_(3)
    head = torch.zeros(12, WIDTH)
    head[:, 0] = torch.linspace(-2, 2, 12)
    made.lm_head.weight.copy_(head)
    return made


@pytest.fixture(scope="module")
def site(model):
    draw = torch.Generator().manual_seed(1)
    ids = [tuple(torch.randint(12, (6 + index % 2,), generator=draw).tolist()) for index in range(10)]
    return sensitivity.Site(model, ids, np.array([2 + index % 3 for index in range(10)]), 0)


def test_no_move_is_exactly_no_response_and_texts_keep_their_order(model, site):
    assert (site.response(site.x[None].repeat(5, 1, 1)) == 0).all()
    moved = site.x[None].clone()
    moved[0, 3] += 1
    response = site.response(moved)
    assert response[0, 3] > 0
    assert (np.delete(response[0], 3) == 0).all()


def test_a_response_is_the_kl_of_a_plain_pass(model):
    ids = torch.randint(12, (1, 6), generator=torch.Generator().manual_seed(3))
    site = sensitivity.Site(model, [tuple(ids[0].tolist())], np.array([2]), 1)
    move = torch.randn(3, 1, WIDTH, generator=torch.Generator().manual_seed(4))
    found = site.response(site.x + move)
    run = replacement.Continuation(model, ids, 1)
    for index in range(3):
        residual = run.residual.clone()
        residual[:, 2] += move[index]
        wanted = replacement.kl(run.logits(run.residual), run.logits(residual)).sum()
        assert found[index, 0] == pytest.approx(float(wanted), rel=1e-3)


def test_the_direction_that_is_read_stands_out(site):
    draw = torch.Generator().manual_seed(2)
    along = torch.zeros(20, 10, WIDTH)
    along[:, :, 0] = 1
    across = torch.zeros(20, 10, WIDTH)
    across[:, :, 5] = 1
    isotropic = sensitivity.unit(torch.randn(200, 10, WIDTH, generator=draw))
    distances = [0.05, 0.1, 0.3, 1.0]
    curves = sensitivity.curves(site, {"along": along, "across": across, "isotropic": isotropic}, distances, 1.0)
    sphere = sensitivity.Sphere({kind: found[0] for kind, found in curves.items()})
    # RMSNorm turns a little of any move into the direction that is read, most of the one along it.
    assert sphere.beyond("along").mean() > 0.3
    assert sphere.beyond("across").mean() < 0.05
    assert sphere.beyond("isotropic").mean() == pytest.approx(0.01, abs=0.005)
    isotropic = curves["isotropic"].mean((1, 2))
    ratios = {k: sensitivity.magnitude_ratio(v.mean((1, 2)), isotropic, distances) for k, v in curves.items()}
    assert ratios["along"] > 1.5 > ratios["isotropic"] > ratios["across"]
    assert ratios["isotropic"] == pytest.approx(1)


def test_the_magnitude_ratio_of_known_curves():
    distances = np.array([0.1, 0.25, 0.5, 1, 2])
    quadratic = distances**2
    for factor in (10.0, 3.0, 1.0, 0.5, 0.1):
        found = sensitivity.magnitude_ratio((factor * distances) ** 2, quadratic, distances)
        assert found == pytest.approx(factor, rel=1e-6)
    assert np.isnan(sensitivity.magnitude_ratio(np.zeros(5), quadratic, distances))


def test_spikes_have_kurtosis_and_gaussians_have_none():
    rng = np.random.default_rng(0)
    spikes = np.where(rng.random((4000, 2)) < 0.01, 50.0, rng.random((4000, 2)))
    sphere = sensitivity.Sphere({"isotropic": rng.standard_normal((4000, 2)), "spikes": spikes})
    assert np.abs(sphere.kurtosis("isotropic")).max() < 0.5
    assert sphere.kurtosis("spikes").min() > 20


def test_labelled_directions_find_the_factor():
    rng = np.random.default_rng(0)
    labels = {"a": rng.random(200) < 0.5, "b": rng.random(200) < 0.5}
    x = 0.01 * rng.standard_normal((200, WIDTH))
    x[:, 0] += labels["a"]
    x[:, 1] += labels["b"]
    found = sensitivity.labelled_directions(torch.tensor(x, dtype=torch.float32), labels, 3)
    for kind in ("diff_mean", "probe"):
        assert found[kind].shape == (4, 3, WIDTH)
        assert float(found[kind][0, 0, 0]) > 0.97
        assert float(found[kind][3, 0, 1]) < -0.97


def test_the_jitter_keeps_the_latents_and_its_controls_the_length(model):
    ids = torch.randint(12, (4, 6), generator=torch.Generator().manual_seed(5))
    whole = Replacing(model, [Batch(ids, np.arange(4))], 0, first=0)
    mean = whole.tokens.x.mean(0)
    around = Surroundings(mean, torch.eye(WIDTH), torch.eye(WIDTH)[:1])
    dictionary = dictionaries.random_decoder(mean, 24, 3, seed=0)
    seen = {}

    class Spy(Replacing):
        def said(self, replaced, clean=None):
            seen[len(seen)] = replaced
            return super().said(replaced, clean)

    spy = Spy(model, [Batch(ids, np.arange(4))], 0, first=0)
    found = list(sensitivity.preserving_l0(spy, dictionary, around, 0.5, torch.Generator().manual_seed(0)))
    assert [kind for _, kind, _ in found] == 2 * ["same_latents", "isotropic", "covariance", "other_latents"]
    x = whole.tokens.x
    codes = dictionary.encode(x)
    moves = [seen[index] - x for index in range(4)]
    for move in moves[1:]:
        torch.testing.assert_close(move.norm(dim=1), moves[0].norm(dim=1), rtol=1e-4, atol=1e-5)
    for row in range(len(x)):
        live = codes[row] > 0
        span = dictionary.decoder[live]
        # Inside the span of the live rows, and a change of signs would have left it.
        _, left, *_ = np.linalg.lstsq(span.T.numpy(), moves[0][row].numpy(), rcond=None)
        assert left.sum() < 1e-8
    same = next(values for centre, kind, values in found if kind == "same_latents")
    assert (same >= 0).all()
    assert same.sum() > 0


def test_an_error_among_random_ones(site):
    mean = site.x.mean(0)
    # All that is lost is what is read: a reconstruction worse than random errors of its length.
    keep = torch.eye(WIDTH)[1:]
    blind = dictionaries.from_basis("pca", keep, keep, mean, WIDTH - 1)
    among = sensitivity.among_errors(site, blind, 60, torch.Generator().manual_seed(0))
    assert among.beyond.mean() > 0.4
    assert np.median(among.z) > 1
    assert (among.variation > 0).all()
