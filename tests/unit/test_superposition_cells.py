import numpy as np
import pytest
from scipy import stats

from counterprobe import superposition_cells
from counterprobe.progress import UserError
from counterprobe.superposition_cells import network_row


def rows(values, **factors):
    """One row a seed; None is a network that was excluded."""
    common = {"experiment": "trained", "score": "accuracy", "level": 0.5} | factors
    return [
        network_row(seed=seed, **common, **({"reason": "diverged"} if value is None else {"estimate": value}))
        for seed, value in enumerate(values)
    ]


def test_a_cell_is_the_mean_of_its_networks_with_students_interval():
    values = [0.5, 0.6, 0.8]
    cell = superposition_cells.cells(superposition_cells.networks(rows(values))).iloc[0]
    half = stats.t.ppf(0.975, 2) * np.std(values, ddof=1) / 3**0.5
    assert cell.estimate == pytest.approx(np.mean(values))
    assert (cell.lower, cell.upper) == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    assert (cell.n_networks, cell.excluded, cell.reason) == (3, 0, "")


def test_what_is_excluded_is_counted_and_never_dropped():
    table = superposition_cells.networks(rows([0.5, None, 0.7], d=4) + rows([None, None], d=8))
    some, none = superposition_cells.cells(table).sort_values("d").itertuples()
    assert (some.n_networks, some.excluded, some.reason) == (2, 1, "diverged")
    assert some.estimate == pytest.approx(0.6)
    assert (none.n_networks, none.excluded, none.reason) == (0, 2, "diverged")
    assert np.isnan(none.estimate)
    assert np.isnan(none.lower)


def test_the_level_is_that_of_the_networks_that_know_it():
    table = rows([None, 0.6, 0.8])
    table[0]["level"] = float("nan")
    assert superposition_cells.cells(superposition_cells.networks(table)).level.item() == 0.5


def test_one_network_has_no_interval():
    cell = superposition_cells.cells(superposition_cells.networks(rows([0.5]))).iloc[0]
    assert cell.estimate == 0.5
    assert np.isnan([cell.lower, cell.upper]).all()


def test_a_nan_without_a_reason_is_an_error():
    with pytest.raises(ValueError, match="one of the two"):
        network_row(experiment="trained", score="accuracy", estimate=float("nan"))
    with pytest.raises(ValueError, match="one of the two"):
        network_row(experiment="trained", score="accuracy", estimate=0.5, reason="diverged")
    with pytest.raises(ValueError, match="colour"):
        network_row(colour="red", estimate=1.0)


def test_two_rows_for_one_network_are_an_error():
    with pytest.raises(ValueError, match="two rows"):
        superposition_cells.networks(rows([0.5]) + rows([0.6]))


def test_pairs_are_formed_network_by_network():
    table = superposition_cells.networks(
        rows([0.9, 0.8, None], network="trained", s=2.0) + rows([0.6, 0.7, 0.5], network="init", s=2.0)
    )
    paired = superposition_cells.networks(
        superposition_cells.paired(table, "network", "trained", "init", lambda a, b: a - b, name="difference")
    )
    assert paired.estimate.tolist()[:2] == pytest.approx([0.3, 0.1])
    assert paired.reason.tolist() == ["", "", "diverged"]
    assert set(paired.network) == {"difference"}


def test_a_slope_per_seed_is_that_of_a_line():
    table = superposition_cells.networks(
        [row for x in (1, 2, 4) for row in rows([3.0 * x + 1, -2.0 * x, None], d=x)] + rows([None, -16.0, 5.0], d=8)
    )
    slopes = superposition_cells.slopes(table, table.d.to_numpy().astype(float), {"d": -1}, score="slope")
    by_seed = {row["seed"]: row for row in slopes}
    assert by_seed[0]["estimate"] == pytest.approx(3.0)
    assert by_seed[1]["estimate"] == pytest.approx(-2.0)
    assert by_seed[2]["reason"] == "a slope needs three cells and has 1: diverged"
    assert {row["d"] for row in slopes} == {-1}


def test_files_of_equal_tables_are_equal(tmp_path):
    table = superposition_cells.networks(rows([0.5, None, 0.7], s=float("nan")))
    superposition_cells.write(table, tmp_path / "a.parquet")
    superposition_cells.write(table.copy(), tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    back = superposition_cells.read(tmp_path / "a.parquet")
    assert back.equals(table)
    with pytest.raises(UserError, match=r"a\.parquet: not a table of toy networks"):
        superposition_cells.read(tmp_path / "a.parquet", superposition_cells.CELL_COLUMNS)
    (tmp_path / "c.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"c\.parquet: damaged"):
        superposition_cells.read(tmp_path / "c.parquet")
