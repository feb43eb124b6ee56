import numpy as np
import pytest
import torch

from counterprobe import superposition_cells, superposition_geometry
from counterprobe.superposition_geometry import Cell
from counterprobe.superposition_training import generator


def test_antipodal_pairs_and_subspaces_of_known_directions():
    weights = torch.tensor([[1.0, -1.1, 0, 0, 0.3, 0], [0, 0.02, 1, 1, -0.3, 0], [0, 0, 0, 1, 0, 0.01]])
    # Features 0 and 1 oppose each other, 2 and 3 share a plane, 4 and 5 are too short to count.
    assert superposition_geometry.antipodal_pairs(weights) == [(0, 1)]
    assert superposition_geometry.subspaces(weights) == 2
    assert superposition_geometry.cosines(weights).shape == (4, 4)
    assert superposition_geometry.subspaces(torch.eye(3)) == 0


def test_the_chance_of_antipodal_pairs_is_that_of_random_directions():
    draws = generator(1)
    m, d, networks = 10, 3, 4000
    directions = torch.randn(networks, d, m, generator=draws)
    directions = directions / directions.norm(dim=1, keepdim=True)
    cosines = directions.transpose(1, 2) @ directions
    counts = (cosines < superposition_geometry.ANTIPODAL).sum(dim=(1, 2)).double() / 2
    error = counts.std() / networks**0.5
    assert abs(counts.mean() - superposition_geometry.chance_of_antipodal(m, d)) < 4 * error


@pytest.mark.parametrize(
    ("data", "density", "share"),
    [("independent", 0.3, 0.3), ("exclusive", 0.3, 0.3), ("exclusive", 0.5, 0.5)],
)
def test_features_are_on_as_often_as_they_should(data, density, share):
    cell = Cell(6, 3, density, data, "learned", 0)
    values = superposition_geometry.features((50_000,), cell, generator(2))
    on = values > 0
    np.testing.assert_allclose(on.double().mean(dim=0), share, atol=0.01)
    both = (on[:, 0::2] & on[:, 1::2]).any()
    assert bool(both) == (data == "independent")


def test_a_small_sweep_learns_pairs_that_no_fixed_directions_have():
    spec = {"base": {"m": 6, "d": 3, "density": 0.2}, "densities": [0.2], "data": ["exclusive"], "sizes": []}
    spec |= {"networks": 3, "steps": 500, "batch": 64, "learning_rate": 0.01}
    cells = superposition_cells.cells(superposition_geometry.sweep(spec))
    pairs = cells[cells.score == "antipodal_pairs"].set_index("network")
    assert pairs.loc["learned"].estimate >= 2
    assert pairs.loc["fixed"].estimate < 1
    assert pairs.loc["fixed"].prediction == pytest.approx(superposition_geometry.chance_of_antipodal(6, 3))


def test_exclusive_features_are_stored_at_the_density_they_can_have():
    spec = {"base": {"m": 4, "d": 2, "density": 0.2}, "densities": [1.0, 0.7, 0.2], "networks": 1, "sizes": []}
    densities = {data: set() for data in ("independent", "exclusive")}
    for cell in superposition_geometry.plan(spec | {"data": list(densities)}):
        densities[cell.data].add(cell.density)
    assert densities == {"independent": {1.0, 0.7, 0.2}, "exclusive": {0.5, 0.2}}


def test_a_diverged_model_is_excluded_and_its_fixed_twin_is_not():
    spec = {
        "base": {"m": 4, "d": 2, "density": 0.5},
        "densities": [0.5],
        "data": ["independent"],
        "sizes": [],
    }
    spec |= {"networks": 1, "steps": 5, "batch": 8, "learning_rate": 1e15}
    table = superposition_geometry.sweep(spec)
    learned = table[table.network == "learned"]
    assert learned.reason.str.startswith("diverged").all()
    assert (table[table.network == "fixed"].reason == "").all()
