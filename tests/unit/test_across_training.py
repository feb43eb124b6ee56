"""Counts of cells and first steps from a table written by hand; the cap that makes .75 a level (C11)."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from counterprobe import across_training, statements, tables

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
STEPS = (0, 8, 64)


@pytest.fixture(scope="module")
def design():
    world = statements.world({"topics": {"cities": 8, "animals": 8}, "carriers": 4}, RESOURCES)
    return statements.factorial("f", {"blocks": 4}, world)


def rows_of(target, lowers, score="accuracy", layers=(-1, 0, 1), protocol="carriers", **more):
    """One row a step and layer with these lower ends; a mapping gives them by (layer, step)."""
    for layer, (step, lower) in itertools.product(layers, zip(STEPS, lowers, strict=True)):
        yield {
            **tables.NOT_APPLICABLE,
            "model": "m",
            "revision": f"step{step}",
            "step": step,
            "weights": "trained",
            "design": "f",
            "position": "period",
            "bos": False,
            "layer": layer,
            "target": target,
            "protocol": protocol,
            "probe": "logistic",
            "score": score,
            "level": 0.5,
            "estimate": lower + 0.05,
            "lower": lower,
            "upper": lower + 0.1,
            "n_texts": 64,
            "n_groups": 8,
            **more,
        }


@pytest.fixture(scope="module")
def summary(design):
    rows = [
        *rows_of("speaker", (0.4, 0.6, 0.8)),
        *rows_of("negated", (0.9, 0.9, 0.9)),
        *rows_of("negated^match", (0.4, 0.4, 0.8)),
        *rows_of("negated^match", (0.3, 0.3, 0.6), "worst_cell"),
        *rows_of("speaker^negated", (0.4, 0.52, 0.45)),
        *rows_of("speaker^negated", (0.3, 0.3, 0.3), "worst_cell"),
        *rows_of("speaker^match", (0.2, 0.2, 0.2)),
        *rows_of("speaker^negated", (0.2, 0.8, 0.8), layers=(0, 1), protocol="published"),
        # None of these is about trained activations read by the reference probe.
        *rows_of("speaker", (1, 1, 1), weights="init"),
        *rows_of("speaker", (1, 1, 1), probe="lda"),
        *rows_of("speaker", (1, 1, 1), control="dichotomy"),
        *rows_of("speaker", (1, 1, 1), representation="token_embeddings"),
    ]
    for row in rows:
        row["upper"] = max(row["upper"], row["estimate"])
    table = across_training.summarise(tables.frame(rows), {"f": design})
    return table.set_index(["protocol", "target", "score"])


def test_cells_are_counted_and_few_are_named(summary):
    cells = summary.loc["carriers", "negated^match", "cells_above_or"]
    assert cells.estimate == 2
    assert "of 6 cells (layer, step): layer 0 at step64, layer 1 at step64" in cells.note
    assert cells.note.startswith("closed under XOR: negated ^ match = truth")
    assert summary.loc["carriers", "negated^match", "cells_beyond_or"].estimate == 2
    assert summary.loc["carriers", "speaker^negated", "cells_above_or"].estimate == 0
    assert summary.loc["carriers", "negated", "cells_above_or"].estimate == 6
    assert summary.loc["published", "speaker^negated", "cells_above_or"].estimate == 4
    assert ("published", "speaker^negated", "cells_beyond_or") not in summary.index


def test_first_steps(summary):
    first = summary.estimate
    assert first["carriers", "speaker", "first_step_decodable"] == 8
    assert first["carriers", "speaker", "first_step_above_or"] == 64
    assert first["carriers", "negated", "first_step_decodable"] == 0
    assert first["carriers", "negated^match", "first_step_beyond_or"] == 64
    assert np.isnan(first["carriers", "speaker^match", "first_step_decodable"])
    assert "never" in summary.loc["carriers", "speaker^match", "first_step_decodable"].note
    lost = summary.loc["carriers", "speaker^negated", "first_step_decodable"]
    assert lost.estimate == 8
    assert "not at step64" in lost.note
    assert ("published", "speaker^negated", "first_step_decodable") not in summary.index


def test_the_order_of_features_needed_and_needless(summary):
    order = summary.xs("order_decodable", level="score").loc["carriers"]
    assert order.loc["negated"].estimate == 1
    assert order.loc["speaker"].estimate == order.loc["speaker^negated"].estimate == 2
    assert order.loc["negated^match"].estimate == 4
    assert np.isnan(order.loc["speaker^match"].estimate)
    assert order.loc["speaker"].note == "feature A of the pre-registered pair"
    assert order.loc["negated^match"].note.startswith("needed XOR")
    assert order.loc["speaker^negated"].note == "needless XOR, pre-registered"
    assert order.loc["speaker^match"].note == "needless XOR"


def test_a_single_revision_has_no_first_step(design):
    rows = [row for row in rows_of("speaker", (0.9, 0.9, 0.9)) if row["step"] == 64]
    for row in rows:
        row["upper"] = 1.0
    table = across_training.summarise(tables.frame(rows), {"f": design})
    assert set(table.score) == {"cells_above_or"}
    # A folder has no step at all.
    unknown = across_training.summarise(tables.frame({**row, "step": -1} for row in rows), {"f": design})
    assert set(unknown.score) == {"cells_above_or"}


def best_affine_accuracy(points, labels):
    """Exhaustive search of 0-1 loss over all lines in the plane: only orders along a direction matter."""
    differences = (points[:, None] - points[None]).reshape(-1, 2)
    turned = np.arctan2(-differences[:, 0], differences[:, 1])[np.any(differences != 0, axis=1)]
    angles = np.unique(np.concatenate([turned, turned + np.pi]))
    best = 0.0
    # Between two directions in which some points change places, the order is constant.
    for angle in np.concatenate([angles, (angles[1:] + angles[:-1]) / 2]):
        values = np.round(points @ [np.cos(angle), np.sin(angle)], 9)
        for threshold in np.unique(values):
            right = np.mean((values >= threshold) == labels)
            best = max(best, right, 1 - right)
    return best


@pytest.mark.parametrize("seed", range(4))
def test_what_is_affine_in_two_features_reaches_three_quarters_and_no_more(seed):
    rng = np.random.default_rng(seed)
    cells = np.array(list(itertools.product([0.0, 1.0], repeat=2)))
    xor = cells[:, 0] != cells[:, 1]
    skew = rng.standard_normal((2, 2))
    assert best_affine_accuracy(cells, xor) == across_training.OR_CAP
    assert best_affine_accuracy(cells @ skew, xor) == across_training.OR_CAP
    # An OR reaches it.
    assert np.mean((cells.sum(1) > 0) == xor) == across_training.OR_CAP
    # Noise that is the same in the four cells leaves the cap where it is: every shifted copy obeys it.
    copies = rng.standard_normal((6, 1, 2))
    noisy = (cells @ skew + 0.5 * copies).reshape(-1, 2)
    assert best_affine_accuracy(noisy, np.tile(xor, 6)) <= across_training.OR_CAP
