"""Held-out probes as read-outs: planted vectors, what was never shown, one probe at a time."""

import numpy as np
import pytest
import torch

from counterprobe import held_out_probes, probes

D, ITEMS, EACH, FOLDS = 24, 40, 8, 2
VECTORS = np.linalg.qr(np.random.default_rng(9).standard_normal((D, D)))[0][:3] * 2
VECTORS[2] = (VECTORS[1] + 2 * VECTORS[2]) / 2


@pytest.fixture(scope="module")
def planted():
    """Half of the texts hold three features along known vectors, c's overlapping with b's; the other half is not read."""
    rng = np.random.default_rng(0)
    n = ITEMS * EACH
    fold_of = np.where(np.arange(n) < n // 2, -1, np.repeat(np.arange(ITEMS), EACH) % FOLDS + 2)
    features = {name: rng.random(n) < 0.5 for name in "abc"}
    x = 0.3 * rng.standard_normal((n, D))
    for name, vector in zip("abc", VECTORS, strict=True):
        x += np.outer(np.where(features[name], 1.0, -1.0), vector)
    half = np.flatnonzero(fold_of >= 0)
    return x[half], half, features, fold_of, held_out_probes.cross_fitted(x[half], features, fold_of, 0.01)


def test_planted_vectors_move_what_they_should(planted):
    x, half, features, _, found = planted
    assert found.names == ("a", "b", "c")
    assert not found.excluded
    assert min(found.accuracy.values()) > 0.99
    before = found.logits(x, half)
    signs = np.where(features["a"][half], 1.0, -1.0)[:, None]
    # The vector of a alone, to the counterfactual: a changes everywhere and nothing else does.
    steered = found.logits(np.stack([x - 2 * signs * VECTORS[0], x]), half)
    assert ((steered[0] > 0) != (before > 0)).mean(axis=0) == pytest.approx([1, 0, 0], abs=0.01)
    assert np.array_equal(steered[1], before)
    # With b's vector in it, b changes too, where it moves away from its own side: half of the texts.
    mixed = found.logits(x - 2 * signs * (VECTORS[0] + VECTORS[1]), half)
    assert ((mixed > 0) != (before > 0)).mean(axis=0)[:2] == pytest.approx([1, 0.5], abs=0.1)


def test_each_text_is_read_by_probes_of_the_other_folds(planted):
    x, half, features, fold_of, found = planted
    labels = np.stack([features[name][half] for name in "abc"], axis=1)
    some = np.array([0, 1, 9, 100, 159])
    for place in some:
        others = fold_of[half] != fold_of[half[place]]
        alone = probes.logistic(torch.as_tensor(x[others]), torch.as_tensor(labels[others]), 0.01)
        expected = x[place] @ alone.directions.numpy() + alone.intercepts.numpy()
        assert found.logits(x[[place]], half[[place]])[0] == pytest.approx(expected, rel=1e-6)


def test_what_can_only_be_looked_up_is_not_read():
    rng = np.random.default_rng(1)
    items = np.repeat(np.arange(ITEMS), EACH)
    label = (rng.permutation(ITEMS) < ITEMS // 2)[items]
    # A vector of each item's own: a probe that had seen the item would tell its label.
    x = (5 * rng.standard_normal((ITEMS, 400)))[items] + 0.1 * rng.standard_normal((len(items), 400))
    known = probes.logistic(torch.as_tensor(x), torch.as_tensor(label[:, None]), 0.01)
    assert (((x @ known.directions.numpy())[:, 0] + float(known.intercepts)) > 0).astype(
        bool
    ).tolist() == label.tolist()
    found = held_out_probes.cross_fitted(x, {"looked_up": label}, items % FOLDS, 0.01)
    assert found.names == ()
    assert "of the undisturbed texts, 0.75 is needed" in found.excluded["looked_up"]
    assert found.logits(x[:3], np.arange(3)).shape == (3, 0)


def test_a_fold_without_a_class_has_no_probe():
    rng = np.random.default_rng(2)
    fold_of = np.repeat([0, 1], 20)
    whole = np.tile([True, False], 20)
    x = np.outer(np.where(whole, 1.0, -1.0), VECTORS[0]) + 0.1 * rng.standard_normal((40, D))
    found = held_out_probes.cross_fitted(x, {"whole": whole, "late": fold_of == 1}, fold_of, 0.01)
    assert found.names == ("whole",)
    assert "both classes" in found.excluded["late"]
    alone = held_out_probes.cross_fitted(x, {"whole": whole}, np.zeros(40, int), 0.01)
    assert "both classes" in alone.excluded["whole"]
