"""Rare features against the number of rows: what a complete basis finds does not grow, what an SAE finds does."""

import numpy as np
import pytest
import torch

from counterprobe import rare_features
from counterprobe.rare_features import Setting

SETTING = Setting(features=96, width=32, often=0.1, rarely=0.001, size=160, steps=500, batch=256)
FEW, MANY = 1000, 16_000


@pytest.fixture(scope="module")
def shares():
    torch.set_num_threads(1)
    return rare_features.by_rarity(rare_features.recall(SETTING, [FEW, MANY], seed=0))


def test_more_rows_do_not_help_ica_to_rare_features_and_do_help_an_sae(shares):
    half = shares[[2, 3]].mean(axis=1)
    assert half["ica", FEW] == half["ica", MANY] == 0
    assert half["sae", MANY] > half["sae", FEW] + 0.3
    assert half["sae", MANY] > 0.5
    # Frequent features are found by both, so it is not the data that ICA fails on.
    assert shares.loc[("ica", MANY), 0] > 0.7
    assert shares.loc[("sae", MANY), 0] == 1
    assert (shares.loc["random"] < 0.05).all(axis=None)


def test_an_sae_misses_what_is_rarer_first(shares):
    assert (shares.loc["sae"].diff(axis=1).iloc[:, 1:] <= 0).all(axis=None)


def test_features_are_on_as_often_as_they_are_said_to_be():
    directions, x = rare_features.planted(Setting(features=8, width=8, often=0.4, rarely=0.01), 20_000, seed=3)
    sizes = np.linalg.solve(directions.numpy().T.astype(float), x.numpy().T.astype(float)).T
    on = sizes > 0.25
    expected = np.geomspace(0.4, 0.01, 8)
    # Five standard errors of a share of 20,000.
    assert (abs(on.mean(0) - expected) < 5 * np.sqrt(expected * (1 - expected) / 20_000)).all()
    assert sizes[on].min() > 0.49
    assert sizes[on].max() < 1.51
    fewer = rare_features.planted(Setting(features=8, width=8, often=0.4, rarely=0.01), 500, seed=3)[1]
    assert torch.equal(fewer, x[:500])
