import numpy as np
import pytest

from counterprobe import superposition, superposition_cells, superposition_plots
from counterprobe.superposition_cells import network_row


def table(rows):
    return superposition_cells.cells(superposition_cells.networks(rows))


def networks(mean, spread=0.01, count=5, **factors):
    """Five networks around a mean; `mean` None is a cell whose networks were all excluded."""
    offsets = np.linspace(-1, 1, count) * spread
    return [
        network_row(seed=seed, **factors, **({"reason": "diverged"} if mean is None else {"estimate": mean + offset}))
        for seed, offset in enumerate(offsets)
    ]


def verdict(cells, claim):
    rows = superposition.verdicts(cells)
    return rows[(rows.claim == claim) & (rows.leg == "verdict")].holds.item()


REDUNDANCY = {"experiment": "redundancy", "target": "xor", "score": "accuracy"}


@pytest.mark.parametrize(
    ("redundant", "distinct", "expected"),
    [
        (0.95, 0.51, "supported"),
        (0.85, 0.51, "contradicted"),
        (0.95, 0.6, "contradicted"),
        (None, 0.51, "inconclusive"),
    ],
)
def test_redundancy_is_judged_by_its_two_bars(redundant, distinct, expected):
    rows = networks(redundant, m=16, copies=16, **REDUNDANCY) + networks(distinct, m=64, copies=1, **REDUNDANCY)
    assert verdict(table(rows), "C14") == expected


SLOPE = {
    "experiment": "trained",
    "target": "xor_needless",
    "score": "interaction_ratio_slope",
    "setting": "over m/d at fixed d",
}


@pytest.mark.parametrize(
    ("slope", "expected"),
    [(0.1, "supported"), (-0.1, "contradicted"), (0.001, "inconclusive"), (None, "inconclusive")],
)
def test_a_slope_is_judged_by_its_interval(slope, expected):
    assert verdict(table(networks(slope, network="trained", **SLOPE)), "C05") == expected


def test_excluded_networks_are_counted_in_the_verdict():
    rows = superposition.verdicts(table(networks(None, network="trained", **SLOPE)))
    assert rows[(rows.claim == "C05") & (rows.leg == "verdict")].excluded.item() == 5


def test_a_network_is_counted_once_however_many_scores_it_lacks():
    at = {
        "experiment": "constructed",
        "claim": "C21",
        "network": "bernoulli",
        "d": 128,
        "s": 2.0,
        "readout": "mean",
    }
    rows = networks(None, score="max_error", **at) + networks(None, score="rms_error", **at)
    final = superposition.verdicts(table(rows))
    final = final[(final.claim == "C21") & (final.leg == "verdict")]
    assert final.excluded.item() == 5
    assert final.holds.item() == "inconclusive"


def test_exact_baselines_are_judged_to_six_digits():
    def rows(error):
        found = []
        for target, exact, random in (("and", 0.25, 0.1), ("xor", 0.5, 0.2)):
            at = {"experiment": "genericity", "target": target, "score": "max_error", "readout": "minimax"}
            found += networks(exact + error, spread=0, count=1, network="affine", **at)
            found += networks(random, network="random", d=64, **at)
        return table(found)

    assert verdict(rows(1e-8), "C42") == "supported"
    assert verdict(rows(1e-5), "C42") == "contradicted"


def test_the_constant_and_the_slope_are_judged_at_the_primary_s_and_others_are_shown():
    at = {"experiment": "genericity", "target": "and", "readout": "indicator", "setting": "fixed s", "m": 32}
    rows = []
    for s, constant in ((3.0, 7.0), (4.0, 11.0)):
        rows += networks(-0.5, s=s, score="log_slope", **at) + networks(
            constant, s=s, d=64, score="rms_error_root_d", **at
        )
    legs = superposition.verdicts(table(rows))
    legs = legs[(legs.claim == "C43") & (legs.leg != "verdict")]
    assert legs.decides.sum() == 2
    assert legs[~legs.decides & legs.criterion.str.contains("10")].holds.tolist() == ["no"]
    assert verdict(table(rows), "C43") == "supported"


def test_a_width_outside_the_claimed_range_contradicts():
    def rows(first):
        at = {"experiment": "constructed", "network": "bernoulli"}
        found = [network_row(seed=0, score="p", d=d, estimate=p, **at) for d, p in ((512, 0.9), (2048, 0.47))]
        for d in (2048, 4096, 16384):
            error = 0.2 if d >= first else 0.4
            found += networks(error, d=d, s=2.0, score="max_error", readout="mean", **at)
        return table(found)

    assert verdict(rows(2048), "C21") == "supported"
    assert verdict(rows(16384), "C21") == "contradicted"
    assert verdict(rows(10**6), "C21") == "contradicted"


def test_every_claim_has_one_verdict_even_without_any_cell():
    rows = superposition.verdicts(table(networks(0.9, m=16, copies=16, **REDUNDANCY)))
    final = rows[rows.leg == "verdict"]
    assert list(final.claim) == list(superposition.CLAIMS)
    others = final[final.claim != "C14"]
    assert set(others.holds) <= {"inconclusive", "not run"}
    assert final[final.claim == "C20"].holds.item() == "not run"


def test_tables_are_gathered_whatever_their_order(tmp_path):
    for name, mean in (("a", 0.9), ("b", 0.5)):
        rows = networks(mean, m=16 if name == "a" else 64, copies=16, **REDUNDANCY)
        superposition_cells.write(superposition_cells.networks(rows), tmp_path / name)
    paths = [tmp_path / "a", tmp_path / "b"]
    assert superposition.gather(paths).equals(superposition.gather(paths[::-1]))


def test_every_experiment_has_a_figure():
    assert superposition_plots.FIGURES == superposition.EXPERIMENTS
