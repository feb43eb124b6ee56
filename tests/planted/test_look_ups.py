"""Names that each interact with the negation in their own way, with nothing shared: a list, not an XOR."""

from pathlib import Path

import numpy as np
import pytest
import torch

from counterprobe import designs, probe_grid, statements

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
SETTINGS = {"penalties": [0.01, 0.1], "inner_folds": 2, "outer_folds": 4, "seed": 0}
TARGET = "speaker^negated"
DRAWS = 200


@pytest.fixture(scope="module")
def called():
    """Share of draws in which the whole 95% interval lies above one half, by protocol."""
    world = statements.world({"topics": {"cities": 48, "animals": 48}, "classes": 8, "carriers": 16}, RESOURCES)
    design = statements.factorial("factorial", {"blocks": 4}, world)
    label = designs.parity(design, TARGET)[:, None]
    name = 2 * design.carriers["speaker"] + design.factors["speaker"]
    resampling = probe_grid.resample(design, [TARGET], {"resamples": 400, "confidence": 0.95}, seed=0)
    protocols = dict(probe_grid.testable(design, ["carriers", "items"], SETTINGS))
    hits = dict.fromkeys(protocols, 0)
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        d = 48
        item, plain, under_not = (rng.standard_normal((count, d)) for count in (len(design.item_names), 2 * 16, 2 * 16))
        x = item[design.items] + plain[name] + design.factors["negated"][:, None] * under_not[name]
        x = torch.from_numpy((x + 0.5 * rng.standard_normal(x.shape)).astype(np.float32))
        for protocol, folds in protocols.items():
            held_out = probe_grid.hold_out(x, label, design, protocol, folds, SETTINGS, "logistic")
            site = {"probe": "logistic", "protocol": protocol}
            rows = probe_grid.score_rows(held_out, design, label, [TARGET], resampling, site)
            [accuracy] = [row for row in rows if row["score"] == "accuracy"]
            hits[protocol] += accuracy["lower"] > 0.5
    return {protocol: count / DRAWS for protocol, count in hits.items()}


@pytest.mark.slow
def test_look_ups_are_not_called_an_xor_with_names_held_out(called):
    assert called["carriers"] <= 0.05


@pytest.mark.slow
def test_look_ups_are_called_an_xor_when_items_alone_are_held_out(called):
    assert called["items"] >= 0.95
