"""Verdicts on claims: planted tables for every kind of criterion, and what missing tables do."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from counterprobe import claims, ledger, statements

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
SUBJECT = {"model": "m", "design": "d", "primary": "a^b", "needed": [], "needless": ["a^b", "a^c"]}
SITE = {"model": "m", "revision": "step4", "target": "a^b", "weights": "trained", "seed": 0, "layer": 0, "note": ""}


def row(estimate, half=0.05, **changes):
    return SITE | {"estimate": estimate, "lower": estimate - half, "upper": estimate + half} | changes


def leg(test, **changes):
    return {"says": "number", "table": "t", "where": {"target": "$primary"}, "test": test} | changes


def found(leg, *rows, **tables):
    return claims.find(leg, {"t": pd.DataFrame(rows), **tables}, SUBJECT)


@pytest.mark.parametrize(
    ("test", "estimate", "holds"),
    [
        ({"above": 0.5}, 0.6, "yes"),
        ({"above": 0.5}, 0.52, "undecided"),
        ({"above": 0.5}, 0.4, "no"),
        ({"below": 0.5}, 0.4, "yes"),
        ({"below": 0.5}, 0.48, "undecided"),
        ({"below": 0.5}, 0.6, "no"),
        ({"inside": [0.4, 0.6]}, 0.5, "yes"),
        ({"inside": [0.4, 0.6]}, 0.58, "undecided"),
        ({"inside": [0.4, 0.6]}, 0.7, "no"),
        ({"at_least": 0.5}, 0.5, "yes"),
        ({"at_least": 0.5}, 0.49, "no"),
        ({"at_most": 0.5}, 0.5, "yes"),
        ({"at_most": 0.5}, 0.51, "no"),
    ],
)
def test_a_criterion_on_one_number(test, estimate, holds):
    seen = found(leg(test), row(estimate))
    assert (seen.holds, seen.estimate, seen.model, seen.rows) == (holds, estimate, "m", 1)


@given(
    estimate=st.floats(-1, 1), low=st.floats(0.01, 1), high=st.floats(0.01, 1), kind=st.sampled_from(["above", "below"])
)
def test_p_is_below_five_per_cent_exactly_where_the_interval_clears_the_bound(estimate, low, high, kind):
    lower, upper = estimate - low, estimate + high
    seen = found(leg({kind: 0.1}), row(estimate, lower=lower, upper=upper))
    if min(abs(lower - 0.1), abs(upper - 0.1)) > 1e-9:
        assert (seen.holds == "yes") == (seen.p < 0.05)


def test_p_and_power_are_those_of_a_normal_estimate():
    se, margin = 0.04, 0.1
    half = stats.norm.ppf(0.975) * se
    seen = found(leg({"above": 0.5}, margin=margin), row(0.58, half))
    assert seen.p == pytest.approx(2 * stats.norm.sf(0.08 / se))
    rng = np.random.default_rng(0)
    drawn = 0.5 + margin + se * rng.standard_normal(200_000)
    assert seen.power == pytest.approx((drawn - half > 0.5).mean(), abs=0.005)
    drawn = 0.5 + se * rng.standard_normal(200_000)
    fits = ((drawn - half > 0.4) & (drawn + half < 0.6)).mean()
    assert found(leg({"inside": [0.4, 0.6]}), row(0.5, half)).power == pytest.approx(fits, abs=0.005)


def test_what_has_no_interval_has_neither_p_nor_power():
    seen = found(leg({"at_most": 2}), row(1.0, lower=np.nan, upper=np.nan))
    assert seen.holds == "yes"
    assert np.isnan([seen.p, seen.power]).all()
    seen = found(leg({"above": 0}), row(1.0, lower=np.nan, upper=np.nan))
    assert (seen.holds, seen.reason) == ("undecided", "the number has no interval")


def test_a_number_that_is_not_defined_decides_nothing_and_says_why():
    seen = found(leg({"above": 0}), row(np.nan, note="nothing to take a share of"))
    assert (seen.holds, seen.reason) == ("undecided", "nothing to take a share of")


def test_rows_become_one_number():
    rows = [row(x, layer=k) for k, x in enumerate((0.1, 0.4, 0.7))]
    mean = found(leg({"above": 0}, reduce="mean"), *rows)
    assert (mean.estimate, mean.lower, mean.upper) == pytest.approx((0.4, 0.35, 0.45))
    assert found(leg({"above": 0}, reduce="largest"), *rows).estimate == 0.7
    assert found(leg({"above": 0}, reduce="smallest"), *rows).lower == pytest.approx(0.05)
    assert found(leg({"at_least": 0.5}, reduce="share", bar=0.2), *rows).estimate == pytest.approx(2 / 3)
    seeds = found(leg({"above": 0}, reduce="seeds"), *rows)
    assert (seeds.lower, seeds.upper) == pytest.approx(stats.t.interval(0.95, 2, 0.4, 0.3 / np.sqrt(3)))
    assert found(leg({"above": 0}, where={"layer": "$last"}), *rows).estimate == 0.7
    assert found(leg({"above": 0}), *rows).holds == "not run"


def test_filters():
    rows = [row(0.1, weights="init"), row(0.3, weights="gaussian"), row(0.9)]
    for where, estimate in (
        ({"weights": {"not": ["init", "gaussian"]}}, 0.9),
        ({"weights": {"starts": "gau"}}, 0.3),
        ({"weights": ["init"]}, 0.1),
        ({"estimate": {"over": 0.5}}, 0.9),
    ):
        assert found(leg({"above": 0}, where=where), *rows).estimate == estimate
    assert "no row has weights spectrum" in found(leg({"above": 0}, where={"weights": "spectrum"}), *rows).reason
    assert found(leg({"above": 0}, where={"colour": "red"}), *rows).reason == "the table has no column colour"


def test_a_difference_of_rows_has_the_interval_of_independent_numbers():
    versus = {"where": {"target": "a"}}
    seen = found(leg({"above": 0}, versus=versus), row(0.9, 0.03), row(0.6, 0.04, target="a"))
    assert (seen.estimate, seen.lower, seen.upper) == pytest.approx((0.3, 0.25, 0.35))
    other = pd.DataFrame([row(0.5, 0.04, target="a")])
    seen = found(leg({"above": 0.3}, versus=versus | {"table": "u"}), row(0.9, 0.03), u=other)
    assert (seen.holds, seen.estimate) == ("yes", pytest.approx(0.4))
    assert found(leg({"above": 0.3}, versus=versus | {"table": "u"}), row(0.9)).reason == "this run has no table u"


def test_a_number_can_be_held_against_a_multiple_of_another():
    versus = {"where": {"target": "a"}, "times": 0.5}
    seen = found(leg({"below": 0}, versus=versus), row(0.2, 0.03), row(0.6, 0.08, target="a"))
    assert (seen.holds, seen.estimate, seen.upper) == ("yes", pytest.approx(-0.1), pytest.approx(-0.05))


def test_every_rung_has_to_be_exceeded():
    versus = {"where": {"weights": {"not": "trained"}}, "by": ["weights"]}
    rungs = [row(x, weights="init", seed=k) for k, x in enumerate((0.50, 0.51, 0.52))]
    rungs += [row(x, weights="gaussian", seed=k) for k, x in enumerate((0.60, 0.62, 0.64))]
    bound = 0.62 + stats.t.ppf(0.975, 2) * 0.02 * np.sqrt(4 / 3)
    asked = leg({"above": 0}, where={"weights": "trained"}, versus=versus)
    assert found(asked, row(bound + 0.06), *rungs).holds == "yes"
    assert found(asked, row(bound + 0.04), *rungs).holds == "undecided"
    assert found(asked, row(bound - 0.06), *rungs).holds == "no"
    assert "two seeds" in found(asked, row(0.9), row(0.5, weights="init")).reason


def test_words_of_another_table():
    asked = leg({"word": {"column": "read", "holds": ["learned"], "fails": ["absent"], "p": "read_p"}}, where={})
    words = [row(0.9, read="learned", read_p=0.01), row(0.8, read="learned", read_p=0.03)]
    seen = found(asked, *words)
    assert (seen.holds, seen.p) == ("yes", 0.03)
    assert found(asked, *words, row(0.6, read="decodable", read_p=0.2)).holds == "undecided"
    seen = found(asked, *words, row(0.5, read="absent", read_p=1.0, target="c^d"))
    assert (seen.holds, seen.estimate, seen.reason) == ("no", 0.5, "c^d is absent")


def test_answers_of_another_table():
    asked = leg({"decided": {"as": "above 0", "bar": 0}}, where={}, margin=0.1)
    held = [row(0.2, holds="yes", leg="one"), row(0.1, holds="yes", leg="two")]
    seen = found(asked, *held)
    assert (seen.holds, seen.estimate) == ("yes", 0.1)
    assert seen.p == pytest.approx(2 * stats.norm.sf(2 * stats.norm.ppf(0.975)))
    seen = found(asked, *held, row(-0.2, holds="no", leg="three"))
    assert (seen.holds, seen.p, seen.estimate) == ("no", 1.0, -0.2)
    assert found(asked, *held, row(0.01, holds="undecided", leg="three")).holds == "undecided"


def judged(*legs, rows, kind="claim", names=("C01",)):
    about = {"claim": "x", "author": "y", "kind": kind, "family": "f", "level": "toy", "fixed": "0" * 12, "why": "z"}
    every = {name: about | {"legs": list(legs)} for name in names}
    return claims.judge(every, {"t": pd.DataFrame(rows)}, SUBJECT, {"t": "0123456789abcdef"})[0]


@pytest.mark.parametrize(
    ("estimates", "verdict"),
    [
        ((0.6, 0.7), "supported"),
        ((0.6, 0.52), "inconclusive"),
        ((0.4, 0.52), "contradicted"),
        ((0.6, None), "not run"),
    ],
)
def test_a_claim_holds_where_all_its_legs_do(estimates, verdict):
    rows = [row(x, layer=k) for k, x in enumerate(estimates) if x is not None]
    legs = [leg({"above": 0.5}, where={"layer": k}, margin=0.05) for k in range(2)]
    (claim,) = judged(*legs, rows=rows).to_dict("records")
    assert claim["verdict"] == verdict
    assert claim["artefact"] == "0123456789ab"
    assert claim["underpowered"] == (verdict == "inconclusive")
    if verdict == "not run":
        assert claim["reason"] == "z (no row has layer 1)"
    else:
        # The leg that decides is the one that is shown.
        shown = {"supported": 0.6, "inconclusive": 0.52, "contradicted": 0.4}[verdict]
        assert claim["estimate"] == shown


def test_what_does_not_decide_is_only_reported():
    legs = [leg({"above": 0.5}), leg({"above": 0.9}, decides=False), leg({"above": 0}, table="gone", decides=False)]
    assert judged(*legs, rows=[row(0.6)]).verdict[0] == "supported"


def test_holm_runs_over_the_claims_of_a_family():
    table = judged(leg({"above": 0.5}), rows=[row(0.57)], names=("C01", "C02", "C03"))
    assert table.p_holm.tolist() == pytest.approx([3 * table.p[0]] * 3)
    assert judged(leg({"above": 0.5}), rows=[row(0.57)], kind="sanity").p_holm.isna().all()


def test_without_a_single_table_nothing_breaks_and_nothing_is_run():
    table, legs = claims.judge(ledger.load(), {}, SUBJECT | dict.fromkeys(named(), "x"), {})
    assert len(table) == 56
    assert set(table.verdict) == {"not run"}
    assert table.reason.str.len().min() > 0
    assert list(table) == list(claims.COLUMNS)
    assert list(legs) == list(claims.LEG_COLUMNS)


EVERY = SUBJECT | {
    **dict.fromkeys(("revision", "design", "published", "position", "protocol", "first", "second"), "x"),
    **{"bos": False, "basic": ["a"], "needed": ["c^d"], "revision": "step4"},
}


def satisfied(legs):
    """Tables in which every leg finds the rows that it asks for, whatever they say."""
    rows = {}
    for asked in legs:
        others = [asked["versus"]] if "versus" in asked else []
        for place, part in enumerate([asked, *others]):
            of = part.get("of", asked.get("of", ("estimate", "lower", "upper")))
            for seed in range(2):
                made = {name: 0.2 + 0.01 * (seed + place) for name in of} | {of[1]: 0.1, of[2]: 0.3}
                made |= {name: asking(value) for name, value in part["where"].items()}
                word = asked["test"].get("word")
                made |= {word["column"]: word["holds"][0], word.get("p", "p"): 0.01} if word else {"holds": "yes"}
                made = {"leg": "x", "lower": 0.1, "upper": 0.3, "estimate": 0.2, "weights": "trained"} | made
                if seed == 0 or "by" in part or part.get("reduce", asked.get("reduce")) == "seeds":
                    rows.setdefault(part.get("table", asked["table"]), []).append(made)
    return {name: pd.DataFrame(table) for name, table in rows.items()}


def asking(value):
    """Some value that a row filter of the ledger lets through."""
    if isinstance(value, dict):
        ((kind, bound),) = value.items()
        return {"not": "another", "starts": bound, "over": 1e9}[kind]
    if value == "$last":
        return 1
    value = EVERY[value[1:]] if isinstance(value, str) and value.startswith("$") else value
    return value[0] if isinstance(value, list) else value


def tables_of(leg):
    return {leg["table"], leg.get("versus", {}).get("table", leg["table"])}


@pytest.mark.parametrize("name", [name for name, claim in ledger.load().items() if claim["legs"]])
def test_without_one_of_its_tables_a_claim_is_not_run_and_says_which_is_missing(name):
    claim = ledger.load()[name]
    deciding = [leg for leg in claim["legs"] if leg.get("decides", True)]
    for leg in deciding:
        seen = claims.find(leg, satisfied([leg]), EVERY)
        assert seen.holds != "not run", seen.reason
        for gone in tables_of(leg):
            kept = {table: rows for table, rows in satisfied([leg]).items() if table != gone}
            assert claims.find(leg, kept, EVERY).reason == f"this run has no table {gone}"
    for gone in set().union(*(tables_of(leg) for leg in deciding)):
        kept = {table: rows for table, rows in satisfied(claim["legs"]).items() if table != gone}
        judged, legs = claims.judge({name: claim}, kept, EVERY, {})
        assert (judged.verdict[0], len(legs)) == ("not run", len(claim["legs"]))
        assert f"this run has no table {gone}" in set(legs.reason)


def test_an_experiment_without_needless_pairs_runs_what_does_not_ask_for_them():
    known = ledger.load()
    judged, _ = claims.judge(known, {}, EVERY | {"needless": [], "needed": []}, {})
    assert len(judged) == len(known)
    leg = known["C30"]["legs"][1]
    assert leg["where"]["target"] == "$needless"
    seen = claims.find(leg, satisfied([leg]), EVERY | {"needless": []})
    assert (seen.holds, seen.reason) == ("not run", "this experiment has no needless target")
    other = known["C30"]["legs"][0]
    assert claims.find(other, satisfied([other]), EVERY | {"needless": []}).holds != "not run"


# A count of cells, widths, and the least of several coordinates: numbers without an interval, so without a power.
WITHOUT_POWER = {"C12", "C21", "C29"}


def test_every_claim_has_the_power_of_its_test_at_a_margin_but_those_without_an_interval():
    without = set()
    for name, claim in ledger.load().items():
        if claim["kind"] != "claim" or not claim["legs"]:
            continue
        powers = []
        for leg in (leg for leg in claim["legs"] if leg.get("decides", True)):
            interval = set(leg["test"]) & {"above", "below", "word"}
            assert not interval or "margin" in leg, f"{name}: {leg['says']}"
            seen = claims.find(leg, satisfied([leg]), EVERY)
            powers.append(seen.power)
        if np.isnan(powers).all():
            without.add(name)
    assert without == WITHOUT_POWER


def test_forty_features_have_pairs_and_no_more(monkeypatch):
    monkeypatch.setattr(claims.splits, "primary_protocol", lambda *_, **__: "items")
    rng = np.random.default_rng(0)
    world = statements.world({"topics": {"cities": 8, "animals": 8}, "carriers": 8}, RESOURCES)
    few = statements.factorial("many", {"blocks": 4}, world)
    names = [f"feature {k}" for k in range(40)]
    factors = {name: rng.integers(0, 2, len(few.texts)).astype(few.factors["speaker"].dtype) for name in names}
    many = dataclasses.replace(
        few, factors=factors, carriers={}, carrier_counts={}, primary=(names[1], names[0]), needed=(), aliases={}
    )
    many = dataclasses.replace(many, readouts={}, priors={})
    subject = claims.subject_of("m", "main", many, "", ["items"], position="last", bos=False, n_folds=4, seed=0)
    assert (len(subject["basic"]), len(subject["needless"]), subject["needed"]) == (40, 780, [])
    judged, _ = claims.judge(ledger.load(), {}, subject, {})
    assert len(judged) == 56


def named():
    return "revision", "published", "position", "bos", "protocol", "first", "second", "basic", "needed"


@pytest.mark.parametrize(("layout", "needed"), [("factorial", ["negated^match"]), ("rax", ["negated^match"])])
def test_targets_of_a_design_have_their_roles(layout, needed):
    world = statements.world({"topics": {"cities": 8, "animals": 8}, "carriers": 8}, RESOURCES)
    design = getattr(statements, layout)("other_name", {"blocks": 4, "primary": ["match", "speaker"]}, world)
    subject = claims.subject_of(
        "m", "step1", design, "", ["published", "items"], position="last", bos=True, n_folds=4, seed=0
    )
    assert (subject["design"], subject["needed"], subject["protocol"]) == ("other_name", needed, "items")
    assert subject["primary"] in subject["needless"]
    with_nothing = claims.find(
        leg({"above": 0}, where={"target": "$needless"}), {"t": pd.DataFrame([row(1.0)])}, subject | {"needless": []}
    )
    assert with_nothing.reason == "this experiment has no needless target"
