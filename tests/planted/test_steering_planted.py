"""Directions that mean nothing, and planted effects, against the band of null directions."""

from pathlib import Path

import numpy as np

from counterprobe import coordinate_swaps, designs, statements, steering

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"


def test_inert_directions_stay_in_the_band_and_planted_effects_do_not():
    """1,000 cells each: planted activations, a read-out of its own, nulls by the function that the table's come from."""
    world = statements.world({"topics": {"cities": 8, "animals": 8}, "carriers": 8}, RESOURCES)
    design = statements.factorial("planted", {"blocks": 4}, world)
    rows = np.arange(64)
    outside, flagged, cells = 0, 0, 1000
    for seed in range(cells):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((len(design.texts), 24)) * rng.uniform(0.2, 2, 24)
        signs = np.where(designs.parity(design, "speaker"), 1.0, -1.0)
        x += np.outer(signs, rng.standard_normal(24))
        empty = np.zeros((len(x), 0), dtype=bool)
        drawn = coordinate_swaps.directions(x, design, rows, "speaker", empty, 40, rng)
        vectors = drawn.nulls[coordinate_swaps.WITHIN_CELL]
        said = rng.standard_normal(24)
        # A saturating answer: what a model says is not linear in what is added.
        effects = np.array([(np.tanh((x[rows] + v) @ said) - np.tanh(x[rows] @ said)).mean() for v in vectors])
        lower, upper = steering.band(effects[:39])
        outside += not lower <= effects[39] <= upper
        # Twice the edge of the population that the nulls come from, with an inert direction's own scatter.
        edge = 1.96 * effects[:39].std()
        flagged += not lower <= 2 * edge + effects[39] <= upper
    assert 0.03 <= outside / cells <= 0.07
    assert flagged / cells >= 0.9
