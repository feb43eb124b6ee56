"""Layer by layer: lenses with a known answer, directions that turn by a known angle, answers beside probes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from counterprobe import (
    components,
    designs,
    language_model,
    layerwise,
    planted_activations,
    statements,
    tables,
    tokenization,
)
from counterprobe.language_model import Architecture

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
LENS = {"tokens": 512, "steps": 150, "batch": 128, "learning_rate": 0.02}
SITE = tables.NOT_APPLICABLE | {"model": "m", "revision": "main", "step": -1, "weights": "trained", "design": "f"}


@pytest.fixture(scope="module")
def model():
    made = language_model.build(Architecture(layers=2, width=16, heads=2), 30, 0)
    with torch.no_grad():
        made.get_output_embeddings().weight.mul_(8)
    return made.eval().requires_grad_(False)


def divergence(model, final, level):
    p, q = (layerwise._log_probabilities(model, x) for x in (final, level))
    return float(layerwise._divergence(p, q).mean())


def test_divergence_is_the_textbooks(model):
    p = torch.tensor([[0.5, 0.25, 0.25]]).log()
    q = torch.tensor([[0.25, 0.5, 0.25]]).log()
    assert float(layerwise._divergence(p, q)[0]) == pytest.approx(0.25)
    assert float(layerwise._divergence(p, p)[0]) == 0


def test_a_tuned_lens_undoes_a_rotation_that_blinds_the_logit_lens_and_leaves_noise(model):
    generator = torch.Generator().manual_seed(0)
    final = torch.randn(1024, 16, generator=generator)
    rotation = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    noise = torch.randn(1024, 16, generator=generator)
    maps = layerwise.tuned(model, [final @ rotation, noise, final], LENS)
    assert len(maps) == 2

    def tuned(level, layer):
        return level + level @ maps[layer][0] + maps[layer][1]

    blind = divergence(model, final, final @ rotation)
    assert divergence(model, final, tuned(final @ rotation, 0)) < 0.1 * blind
    guess = layerwise._log_probabilities(model, final).exp().mean(dim=0).log()
    own = layerwise._log_probabilities(model, final)
    nothing = float(layerwise._divergence(own, guess.expand_as(own)).mean())
    assert divergence(model, final, tuned(noise, 1)) > 0.8 * nothing


def test_noise_on_unlikely_tokens_moves_log_probabilities_and_hardly_the_divergence():
    """Where ten of a hundred tokens share .999, and where all are as likely."""
    ten = torch.full((400, 100), 0.001 / 90)
    ten[:, 3:13] = 0.0999
    for p, least, most in ((ten, 0.0005, 0.003), (torch.full((400, 100), 0.01), 0.8, 1.0)):
        few, every = layerwise.unlikely(p.log(), torch.Generator().manual_seed(0))
        shares = few.sum(axis=0) / every.sum(axis=0)
        assert few.shape == (400, 2)
        assert least < shares[0] < most
        # Noise on likely tokens also moves all others, by what the probabilities then sum to.
        assert 0.6 < shares[1] < 0.95


def test_what_noise_moves_is_that_of_the_definition():
    p = torch.distributions.Dirichlet(torch.full((20,), 0.5)).sample((5,)).numpy().astype(np.float64)
    few, every = layerwise.unlikely(torch.tensor(p).log(), torch.Generator().manual_seed(3))
    noise = torch.randn((5, 20), generator=torch.Generator().manual_seed(3)).numpy()
    for text in range(5):
        likely = np.argsort(p[text])[18:]
        for found, kept in ((few, np.setdiff1d(np.arange(20), likely)), (every, np.arange(20))):
            q = p[text].copy()
            q[kept] *= np.exp(noise[text, kept])
            q /= q.sum()
            expected = [np.sum(p[text] * np.log2(p[text] / q)), np.sum(np.log(p[text] / q) ** 2)]
            assert found[text] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def design():
    return planted_activations.layout(items=32, carriers=8, texts=16)


def rotated(design, angle, noise=0.05):
    rng = np.random.default_rng(0)
    signs = np.where(designs.parity(design, "speaker"), 1.0, -1.0)[:, None]
    first, second = np.eye(8)[0], np.cos(angle) * np.eye(8)[0] + np.sin(angle) * np.eye(8)[1]
    levels = [signs * direction + noise * rng.standard_normal((len(signs), 8)) for direction in (first, second)]
    constant = np.ones((len(signs), 8))
    settings, statistic = {"seed": 0}, {"confidence": 0.95}
    rows = layerwise.rotation_rows([constant, *levels], design, list(design.factors), settings, statistic, SITE)
    table = tables.frame([{**row, "n_texts": 1} for row in rows])
    return table[table.target == "speaker"].set_index(["score", "layer"])


@pytest.mark.parametrize("angle", [0.0, 0.7, np.pi / 2])
def test_directions_turn_by_the_angle_that_was_planted(design, angle):
    found = rotated(design, angle)
    assert found.estimate["cosine_next", 1] == pytest.approx(np.cos(angle), abs=0.03)
    assert found.estimate["reliability", 1] == pytest.approx(1, abs=0.01)
    # A layer that is the same for all texts has no direction.
    assert ("reliability", 0) not in found.index
    assert ("cosine_next", 0) not in found.index


def test_noise_is_not_reliable(design):
    assert abs(rotated(design, 0.0, noise=200.0).estimate["reliability", 1]) < 0.9


def test_every_row_of_a_small_model(tmp_path):
    world = statements.world({"topics": {"cities": 16, "animals": 16}, "carriers": 4}, RESOURCES)
    design = statements.factorial("factorial", {"blocks": 4}, world)
    made = tokenization.word_level_tokenizer(statements.vocabulary(world))
    small = language_model.build(Architecture(layers=2, width=16, heads=2), made.get_vocab_size(), 0).eval()
    small.requires_grad_(False)
    texts = components.sequences(small, made, design, "last", bos=False, token_budget=4096)
    residuals, owner = layerwise.stream(small, texts)
    assert len(residuals) == 3
    assert len(owner) == len(residuals[0]) == sum(ids.numel() for ids in texts.batches)
    settings = {"seed": 0, "lens": LENS | {"steps": 3}}
    rows = layerwise.lens_rows(small, residuals, owner, design, texts, settings, {"confidence": 0.95}, SITE)
    table = tables.frame([{**row, "n_texts": 1} for row in rows])
    shares = table[(table.score == "share_of_drop") & (table.probe == "logit_lens")]
    assert shares.estimate.sum() == pytest.approx(1)
    kl = table[(table.score == "kl") & (table.layer == 2)]
    assert (kl.estimate.abs() < 1e-6).all()
    assert (table[table.score == "kl"].level > 0).all()
