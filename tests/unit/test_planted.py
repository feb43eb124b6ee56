"""The planted representation: the published layout, and nothing in it but tokens."""

import numpy as np
import pytest

from counterprobe import designs, planted


@pytest.fixture(scope="module")
def drawn():
    return planted.layout(items=60, classes=12, names=6, seed=3)


def test_four_texts_an_item_and_a_twin_that_shares_the_speaker(drawn):
    design, _, named = drawn
    assert np.bincount(design.items).tolist() == [4] * 60
    for row in range(2 * 60):
        twins = np.flatnonzero(design.rows == row)
        assert len(twins) == 2
        assert set(design.factors["negated"][twins]) == {False, True}
        assert len(set(design.factors["speaker"][twins])) == len(set(named[twins])) == 1
    assert design.factors["speaker"].sum() == 2 * 60


def test_a_wrong_class_is_another_and_a_right_one_the_items_own(drawn):
    design, mentioned, _ = drawn
    for item in range(60):
        here = design.items == item
        right = set(mentioned[here & design.factors["match"]])
        wrong = set(mentioned[here & ~design.factors["match"]])
        assert len(right) == len(wrong) == 1
        assert right != wrong


def test_the_representation_is_a_sum_over_tokens(drawn):
    design, mentioned, named = drawn
    x = planted.additive(design, mentioned, named, width=16, noise=0.0, seed=0).astype(np.float64)
    tokens = np.concatenate(
        [
            np.eye(60)[design.items],
            np.eye(mentioned.max() + 1)[mentioned],
            np.eye(named.max() + 1)[named],
            design.factors["negated"][:, None],
        ],
        axis=1,
    )
    residual = x - tokens @ np.linalg.lstsq(tokens, x, rcond=None)[0]
    assert np.abs(residual).max() < 1e-4


def test_draws_differ_by_their_seed_and_nothing_else(drawn):
    design, mentioned, named = drawn
    first, again, other = (
        planted.additive(design, mentioned, named, width=8, noise=0.1, seed=seed) for seed in (0, 0, 1)
    )
    assert (first == again).all()
    assert not np.allclose(first, other)
    assert list(designs.targets(design)) == list(designs.targets(planted.layout(60, 12, 6, 4)[0]))
