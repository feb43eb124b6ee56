"""Rows of dictionaries to steer along: the planted latent is found, its sign turned to True, and every pool asked."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from counterprobe import dictionary_rows
from counterprobe.dictionaries import Dictionary
from counterprobe.dictionary_fitting import Fitted

D = 6


def dictionary(name, rows, seed=0):
    rows = torch.as_tensor(rows, dtype=torch.float32)
    nothing = torch.zeros(len(rows))
    return Dictionary(name, rows.T.clone(), nothing, rows, torch.zeros(D), "relu", seed=seed)


@pytest.fixture(scope="module")
def planted():
    """The third coordinate is large for False, the others say nothing; no text reaches the last row of the first pool."""
    rng = np.random.default_rng(0)
    labels = rng.random(400) < 0.5
    x = rng.standard_normal((400, D))
    x[:, 2] += np.where(labels, -1.5, 1.5)
    dead = -100 * np.eye(D)[:1]
    return x, labels, dictionary("sae", np.concatenate([np.eye(D), dead]))


def test_the_planted_latent_is_found_and_turned_to_true(planted):
    x, labels, whole = planted
    few = dictionary("sae", np.eye(D)[:2])
    rows = dictionary_rows.most_selective({"sae": [few, whole], "ica": [few]}, x, labels)
    assert rows["sae"] == pytest.approx(-np.eye(D)[2])
    assert np.abs(rows["ica"]).argmax() in (0, 1)
    found = dictionary_rows.selectivity(whole, x, labels)
    codes = np.maximum(x @ whole.decoder.T.double().numpy(), 0).astype(np.float32)
    for latent, value in enumerate(found):
        assert value == pytest.approx(roc_auc_score(labels, codes[:, latent]) - 0.5)


def test_a_pool_that_says_nothing_has_no_row(planted):
    x, labels, _ = planted
    assert dictionary_rows.most_selective({"sae": [dictionary("sae", np.zeros((3, D)))]}, x, labels) == {}


def test_dictionaries_of_the_design_of_one_layer_and_the_first_seed():
    rows = np.eye(D)
    kept = Fitted(2, "design", dictionary("sae", rows))
    others = [
        Fitted(1, "design", dictionary("sae", rows)),
        Fitted(2, "random_tokens", dictionary("sae", rows)),
        Fitted(2, "design", dictionary("sae", rows, seed=1)),
        Fitted(2, "design", dictionary("random", rows)),
    ]
    found = dictionary_rows.at_layer([*others, kept], 2)
    assert list(found) == ["sae"]
    assert found["sae"] == [kept.dictionary]
    assert dictionary_rows.at_layer(others, 3) == {}
