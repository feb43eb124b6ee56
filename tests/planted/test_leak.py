"""The published layout: an additive representation read below one half by rows, at one half by items or names."""

import numpy as np
import pytest

from counterprobe import planted

SPEC = {
    "planted": {"items": 748, "classes": 60, "names": 16, "width": 128, "noise": 0.1, "seeds": 20},
    "probes": {"penalties": [0.0001, 0.001, 0.01, 0.1, 1.0], "inner_folds": 3, "outer_folds": 4, "seed": 0},
    "statistics": {"resamples": 300, "confidence": 0.95},
    "design": {"protocols": ["carriers", "items", "published"]},
}


@pytest.fixture(scope="module")
def scores():
    table = planted.leak(SPEC, "rax", device="cpu")
    return table[table.score == "accuracy"]


@pytest.mark.parametrize("target", ["negated^match", "speaker^negated"])
def test_rows_at_random_read_an_xor_that_is_not_there_far_below_one_half(scores, target):
    published = scores[(scores.protocol == "published") & (scores.target == target)]
    assert len(published) == 20
    assert published.estimate.mean() < 0.4


def test_what_is_held_out_with_its_item_reads_it_at_one_half(scores):
    grouped = scores[
        scores.protocol.isin(["items", "carriers"]) & scores.target.isin(["negated^match", "speaker^negated"])
    ]
    means = grouped.groupby(["protocol", "target"]).estimate.agg(["size", "mean"])
    assert (means["size"] == 20).all()
    assert len(means) == 4
    assert (abs(means["mean"] - 0.5) < 0.02).all()
    assert np.mean((grouped.lower <= 0.5) & (grouped.upper >= 0.5)) >= 0.9
