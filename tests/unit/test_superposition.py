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


SLOPE = {"experiment": "trained", "target": "xor_needless", "score": "interaction_ratio_slope"}


def slopes(fixed_d, fixed_m, paired):
    """The slopes that decide C05: trained in two sweeps, and trained minus random weights in both."""
    rows = networks(fixed_d, network="trained", setting=superposition.FIXED_D, **SLOPE)
    rows += networks(fixed_m, network="trained", setting=superposition.FIXED_M, **SLOPE)
    for setting in (superposition.FIXED_D, superposition.FIXED_M):
        rows += networks(paired, network="trained - init", setting=setting, **SLOPE)
    return table(rows)


@pytest.mark.parametrize(
    ("fixed_d", "fixed_m", "paired", "expected"),
    [
        (0.1, 0.1, 0.1, "supported"),
        (0.1, -0.1, 0.1, "contradicted"),
        (0.1, 0.1, -0.1, "contradicted"),
        (0.1, 0.001, 0.1, "inconclusive"),
        (0.1, None, 0.1, "inconclusive"),
    ],
)
def test_slopes_in_both_sweeps_and_beyond_random_weights_are_needed(fixed_d, fixed_m, paired, expected):
    assert verdict(slopes(fixed_d, fixed_m, paired), "C05") == expected


def test_what_is_derived_from_a_network_does_not_count_it_again():
    at = {"experiment": "trained", "claim": "C05", "target": "xor_needless", "m": 32, "d": 16}
    rows = []
    for score in ("interaction", "interaction_ratio"):
        rows += networks(None, network="trained", score=score, **at)
        rows += networks(None, network="trained - init", score=score, **at)
        rows += networks(None, network="trained", score=f"{score}_slope", **at | {"m": -1})
    rows = superposition.verdicts(table(rows))
    for claim in ("C05", "interference", "for free"):
        assert rows[(rows.claim == claim) & (rows.leg == "verdict")].excluded.item() == 5


def designated(accuracies, trend=1.0, selectivity=0.1):
    at = {"experiment": "constructed", "network": "designated", "setting": "direct inputs"}
    rows = networks(trend, score="accuracy_slope", **at)
    for index, (p, mean, spread) in enumerate(accuracies):
        cell = at | {"p": p, "m": index, "s": 2.0}
        rows += networks(mean, spread=spread, score="accuracy", **cell)
        rows += networks(selectivity, score="selectivity", **cell)
    return table(rows)


def test_the_best_of_many_cells_is_judged_after_holms_correction():
    none = (0.0, 0.5, 0.001)
    # Alone .52 has p = .047; the smallest of twelve such p-values is no evidence.
    assert verdict(designated([none, (0.1, 0.52, 0.02)]), "C07") == "supported"
    crowd = [(0.1, 0.49, 0.02)] * 11
    assert verdict(designated([none, (0.1, 0.52, 0.02), *crowd]), "C07") == "inconclusive"
    assert verdict(designated([none, (0.1, 0.7, 0.02), *crowd]), "C07") == "supported"


@pytest.mark.parametrize("odd", [{"trend": -1.0}, {"selectivity": -0.1}])
def test_an_xor_that_is_nothing_special_does_not_support_interference(odd):
    assert verdict(designated([(0.0, 0.5, 0.001), (0.1, 0.7, 0.02)], **odd), "C07") == "contradicted"


@pytest.mark.parametrize(
    ("trained", "ratio", "expected"),
    [(0.2, 1.5, "supported"), (0.2, 2.5, "contradicted"), (0.3, 1.1, "inconclusive"), (0.25, 1.1, "inconclusive")],
)
def test_a_ratio_of_errors_decides_only_where_the_trained_layer_beats_affine(trained, ratio, expected):
    at = {"experiment": "genericity", "target": "and", "setting": "L4 weighted", "m": 10, "d": 64, "s": 3.0}
    rows = networks(trained, network="trained", score="max_error", **at)
    rows += networks(trained * ratio, network="frozen", score="max_error", **at)
    rows += networks(ratio, network="frozen / trained", score="max_error_ratio", **at)
    legs = superposition.verdicts(table(rows))
    leg = legs[(legs.claim == "C41") & (legs.leg != "verdict")].iloc[0]
    assert f"{trained * ratio:.3f} / {trained:.3f}" in leg.leg
    assert verdict(table(rows), "C41") == expected


@pytest.mark.parametrize(("wide", "expected"), [(0.9, "supported"), (0.0, "contradicted")])
def test_a_collapse_is_asked_of_every_width(wide, expected):
    at = {"experiment": "genericity", "target": "and", "score": "collapsed", "network": "frozen"}
    rows = []
    for d, share in ((8, 0.9), (64, wide)):
        rows += networks(share, d=d, setting="L2 unweighted", **at)
        rows += networks(0.0, d=d, setting="L4 unweighted", **at)
    assert verdict(table(rows), "C44") == expected


def test_only_quantities_on_which_the_explanations_disagree_decide():
    assert any(not prediction.decides for prediction in superposition.PREDICTIONS)
    rows = []
    for prediction in superposition.PREDICTIONS:
        if not prediction.at_base:
            mean = -1.0 if prediction.for_free else 1.0
            rows += networks(mean, experiment="trained", s=2.0, depth=1, m=16, d=16, **prediction.where)
    found = superposition.verdicts(table(rows))
    found = found[found.leg.str.contains("slope") & found.claim.isin(superposition.EXPLANATIONS)]
    silent = found.criterion.str.contains("silent")
    assert (found.decides == ~silent).all()
    assert (found[found.claim == "for free"].holds == "yes").all()
    assert (found[(found.claim == "interference") & ~silent].holds == "no").all()
    assert (found[silent].holds == "yes").all()


def test_fixed_directions_are_one_leg_a_size():
    at = {"experiment": "geometry", "score": "antipodal_pairs", "network": "fixed", "m": 20, "d": 10}
    rows = [row for p in (0.1, 0.3) for row in networks(0.0 if p < 0.2 else 2.0, p=p, setting="independent", **at)]
    legs = superposition.verdicts(table(rows))
    legs = legs[(legs.claim == "C18") & (legs.leg != "verdict")]
    assert legs.leg.tolist() == ["fixed, m 20, d 10, highest of 2 cells"]
    assert legs.holds.tolist() == ["no"]


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
