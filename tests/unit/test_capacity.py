"""Probe families of growing capacity: what each can and cannot read, and the stack against one probe at a time."""

import numpy as np
import pytest
import torch

from counterprobe import capacity, designs, planted_activations, probe_grid, splits
from counterprobe.probe_grid import Resampling, Units

SETTINGS = {"penalties": [0.001, 0.1], "outer_folds": 4, "inner_folds": 2, "seed": 0}
CAPACITY = {
    "components": 2,
    "widths": [4, 16],
    "epochs": 40,
    "batch": 32,
    "learning_rate": 0.02,
    "weight_decay": 0.01,
    "seed": 0,
}
XOR = planted_activations.TARGET


@pytest.fixture(scope="module")
def design():
    return planted_activations.layout(items=16, carriers=8, texts=16)


@pytest.fixture(scope="module")
def folds(design):
    return splits.folds(design, "carriers", 2, n_folds=4, seed=0)


def accuracy(features, labels, folds, **changes):
    features = torch.tensor(features, dtype=torch.float32)
    found = capacity.every_family(features, labels, folds, SETTINGS, CAPACITY | changes)
    assert list(found) == list(capacity.families(CAPACITY | changes))
    return {family: correct.mean(axis=0) for family, correct in found.items()}


def two_features(design, rng, noise=0.1):
    x = np.stack([planted_activations.half_sign(design, f)[:, 0] for f in ("speaker", "negated")], axis=1)
    return x + noise * rng.standard_normal(x.shape)


def test_what_is_no_plane_is_read_by_the_larger_families_only(design, folds):
    x = two_features(design, np.random.default_rng(0))
    found = accuracy(x, designs.parity(design, XOR)[:, None], folds)
    assert found["quadratic"][0] > 0.99
    assert found["mlp_16"][0] > 0.97
    for family in ("mass_mean", "lda", "logistic"):
        assert 0.2 < found[family][0] < 0.7
    basic = accuracy(x, designs.parity(design, "speaker")[:, None], folds)
    assert min(values[0] for values in basic.values()) > 0.95


def test_noise_is_read_by_none(design, folds):
    rng = np.random.default_rng(1)
    labels = np.stack([designs.parity(design, name) for name in designs.targets(design)], axis=1)
    found = accuracy(rng.standard_normal((len(labels), 8)), labels, folds, epochs=10)
    for family, values in found.items():
        assert abs(values.mean() - 0.5) < 4 * 0.5 / (labels.size**0.5), family


def test_items_known_by_heart_do_not_help_on_others():
    # A label of each item, and items far apart: every family learns it, and none of it holds for other items.
    rng = np.random.default_rng(2)
    design = planted_activations.layout(items=32, carriers=8, texts=16)
    labels = rng.permuted(np.tile([[True], [False]], (16, 10)), axis=0)[design.items]
    x = 3 * rng.standard_normal((32, 12))[design.items] + 0.1 * rng.standard_normal((len(labels), 12))
    items = splits.folds(design, "items", 2, n_folds=4, seed=0)
    for family, values in accuracy(x, labels, items, epochs=5).items():
        assert values.mean() < 0.5 + 4 * 0.5 / 320**0.5, family


def one_by_one(train, labels, test, width, settings):
    """One probe with torch's own layers and optimiser."""
    mean, scale = train.double().mean(0), train.double().std(0, correction=0)
    x, held_out = (((part.double() - mean) / scale).float() for part in (train, test))
    generator = torch.Generator().manual_seed(settings["seed"] + width)
    d = x.shape[1]
    shapes = [((d, width), d), ((width,), d), ((width,), width), ((1,), width)]
    into, offset, out, bias = (
        (2 * torch.rand(*shape, generator=generator) - 1) / fan_in**0.5 for shape, fan_in in shapes
    )
    net = torch.nn.Sequential(torch.nn.Linear(d, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))
    with torch.no_grad():
        net[0].weight.copy_(into.T)
        net[0].bias.copy_(offset)
        net[2].weight.copy_(out[None])
        net[2].bias.copy_(bias)
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings["learning_rate"], weight_decay=settings["weight_decay"])
    order = torch.Generator().manual_seed(settings["seed"])
    after = []
    for _ in range(settings["epochs"]):
        for rows in torch.randperm(len(x), generator=order).split(settings["batch"]):
            optimiser.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x[rows])[:, 0], labels[rows].float())
            loss.backward()
            optimiser.step()
        after.append(net(held_out)[:, 0].detach())
    return torch.stack(after)


def test_the_stack_is_one_probe_at_a_time(design):
    rng = torch.Generator().manual_seed(0)
    train, test = torch.randn(96, 6, generator=rng), torch.randn(20, 6, generator=rng)
    labels = torch.stack([train[:, 0] * train[:, 1] > 0, train[:, 2] > 0, train[:, 3] + train[:, 4] > 0], dim=1)
    settings = CAPACITY | {"epochs": 6}
    stacked = capacity.perceptrons(train, labels, test, [4, 16], settings)
    assert stacked.shape == (6, 2, 20, 3)
    for place, width in enumerate((4, 16)):
        for column in range(3):
            alone = one_by_one(train, labels[:, column], test, width, settings)
            torch.testing.assert_close(stacked[:, place, :, column], alone, atol=2e-4, rtol=2e-3)


def test_a_probe_does_not_depend_on_its_company():
    rng = torch.Generator().manual_seed(1)
    train, test = torch.randn(64, 5, generator=rng), torch.randn(10, 5, generator=rng)
    labels = train[:, :3] > 0
    together = capacity.perceptrons(train, labels, test, [4, 16], CAPACITY)
    alone = capacity.perceptrons(train, labels[:, 1:2], test, [16], CAPACITY)
    torch.testing.assert_close(together[:, 1:, :, 1:2], alone, atol=2e-4, rtol=2e-3)
    again = capacity.perceptrons(train, labels, test, [4, 16], CAPACITY)
    assert torch.equal(together, again)


def test_products_are_of_components_that_the_training_part_shows():
    rng = torch.Generator().manual_seed(2)
    train, test = torch.randn(50, 6, generator=rng), torch.randn(9, 6, generator=rng)
    here, there = capacity.quadratic(3)(train, test, np.arange(50), np.arange(9))
    assert here.shape == (50, 6 + 6)
    assert there.shape == (9, 6 + 6)
    # The squares' means are the components' variances, 1 on the training part.
    squares = here[:, [6, 9, 11]]
    torch.testing.assert_close(squares.mean(0), torch.ones(3), atol=1e-3, rtol=0)
    other = capacity.quadratic(3)(train, torch.cat([test, 100 * test]), np.arange(50), np.arange(18))[1]
    torch.testing.assert_close(other[:9], there)


def test_targets_are_the_pairs_and_what_they_are_made_of(design):
    assert capacity.targets(design) == ("speaker", "negated", "match", "speaker^negated", "negated^match")


def test_dichotomies_know_nothing_of_any_target(design):
    drawn = capacity.dichotomies(design, 16, seed=0)
    assert drawn.shape == (256, 16)
    for name in capacity.targets(design):
        signs = 2 * planted_activations.half_sign(design, name)
        assert np.abs((signs * np.where(drawn, 1, -1)).mean(axis=0)).max() == 0


def test_peaks_are_where_the_means_are_highest():
    rng = np.random.default_rng(0)
    base = np.array([0.5, 0.7, 0.9, 0.95])
    accuracy = base[:, None, None] + 0.02 * rng.standard_normal((4, 200, 1))
    selectivity = np.array([0.0, 0.3, 0.1, 0.05])[:, None, None] + 0.02 * rng.standard_normal((4, 200, 1))
    units = np.arange(200)
    weights = rng.multinomial(200, np.full(200, 1 / 200), size=300).astype(np.float32)
    resampling = Resampling((Units(np.array([0]), weights, units, units, None),), 0.95)
    rows = {row["score"]: row for row in capacity.peak_rows(accuracy, selectivity, "abcd", resampling, ["t"], {})}
    assert rows["peak_accuracy"]["estimate"] == 3
    assert rows["peak_accuracy"]["note"] == "d"
    assert rows["peak_selectivity"]["estimate"] == 1
    assert (rows["peak_difference"]["lower"], rows["peak_difference"]["upper"]) == (2, 2)
    level = np.repeat(accuracy[:1], 4, axis=0)
    tied = list(capacity.peak_rows(level, level, "abcd", resampling, ["t"], {}))
    assert [row["estimate"] for row in tied] == [0, 0, 0]


def test_means_are_those_of_the_grid(design, folds):
    x = torch.tensor(two_features(design, np.random.default_rng(3)), dtype=torch.float32)
    labels = designs.parity(design, XOR)[:, None]
    held_out = probe_grid.cross_validate(x, labels, folds, [0.1], "lda")
    resampling = probe_grid.resample(design, [XOR], {"resamples": 200, "confidence": 0.95}, 0)
    site = {"probe": "lda", "protocol": "carriers", "note": ""}
    [expected] = probe_grid.score_rows(held_out, design, labels, [XOR], resampling, site)
    [found] = capacity.mean_rows(held_out.correct, resampling, [XOR], site)
    assert all(found[key] == expected[key] for key in found)
