"""Verdicts from tables: planted rows whose verdict is known, and the family they are corrected in."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from counterprobe import judgement, statements, tables, verdict_plots

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
MARGINS = {"carriers": 0.1, "items": 0.05, "effect": 0.05, "divergence": 0.01}
SITE = {"model": "m", "revision": "step4", "step": 4, "design": "factorial", "position": "last", "bos": False}
TARGETS = ("speaker", "negated^match", "speaker^negated")
# accuracy of the trained model, of the rungs, and the effect of the swap
PLANTED = {"speaker": (0.98, 0.98, 0.0), "negated^match": (0.99, 0.52, 0.6), "speaker^negated": (0.5, 0.5, 0.0)}


@pytest.fixture(scope="module")
def design():
    world = statements.world({"topics": {"cities": 8, "animals": 8}, "carriers": 8}, RESOURCES)
    return statements.factorial("factorial", {"blocks": 4}, world)


def row(**changes):
    made = {**tables.NOT_APPLICABLE, **SITE, "weights": "trained", "n_texts": 256, "n_groups": 16} | changes
    half = changes.pop("half", 0.01)
    made.pop("half", None)
    return made | {"lower": made["estimate"] - half, "upper": made["estimate"] + half}


def probes():
    rows = []
    rng = np.random.default_rng(0)
    for target, (accuracy, rung, _) in PLANTED.items():
        of = {"target": target, "protocol": "carriers", "probe": "logistic"}
        for layer in (-1, 0, 1):
            told = 2 * accuracy - 1 - (0.1 if layer == 0 else 0)
            rows += [
                row(**of, layer=layer, score="accuracy", estimate=accuracy),
                row(**of, layer=layer, score="bits", estimate=told),
                row(**of, layer=layer, score="inner_bits", estimate=told),
            ]
        for seed in range(3):
            noise = 0.004 * rng.standard_normal()
            weights = {"weights": "spectrum", "seed": seed, "layer": -1}
            rows += [
                row(**of, **weights, score="accuracy", estimate=rung + noise),
                row(**of, **weights, score="bits", estimate=2 * rung - 1 + noise),
            ]
        against = {**of, "layer": 1, "control": "dichotomy", "n_groups": 40}
        rows += [
            row(**against, score="accuracy", estimate=0.5),
            row(**against, score="selectivity", estimate=accuracy - 0.5),
            row(**against, score="spread", estimate=0.01),
            row(**against, score="rank", estimate=9.0),
            row(**of, layer=1, score="bits_beyond_tokens", estimate=max(accuracy - 0.5, 0)),
            row(
                target=target,
                protocol="carriers",
                probe="contrast",
                layer=1,
                score="p_carriers",
                estimate=0.0005 if accuracy > 0.6 else 0.4,
            ),
        ]
    return tables.frame(rows)


def use():
    rows = []
    for target, (*_, effect) in PLANTED.items():
        of = {"target": target, "protocol": "carriers", "layer": 1}
        score = "effect" if target != "speaker^negated" else "divergence"
        rows.append(row(**of, probe="walsh", score=score, estimate=effect, half=0.004))
        for kind in ("within_cell", "dichotomy"):
            for k in range(39):
                rows.append(row(**of, probe="null", control=kind, seed=k, score=score, estimate=0.002 + k / 1e4))
    return tables.frame(rows)


def audit(verdict="ok"):
    rows = [
        {"design": "factorial", "protocol": "carriers", "target": t, "check": "held_out", "verdict": verdict}
        for t in TARGETS
    ]
    return pd.DataFrame(rows)


def judged(design, **changes):
    given = {"probes": probes(), "health": tables.frame([]), "use": use(), "audit": audit()} | changes
    table = judgement.judge(
        *given.values(), {"factorial": design}, {"factorial": ["carriers", "items"]}, MARGINS, n_folds=4, seed=0
    )
    return table.set_index("target")


def test_the_verdicts_are_those_that_were_planted(design):
    table = judged(design)
    assert set(table.reset_index()) == set(judgement.COLUMNS)
    assert table.loc["negated^match", ["read", "use"]].tolist() == ["learned", "used"]
    assert table.loc["negated^match", "verdict"].startswith("model feature")
    # Randomised weights read the speaker as well: decodable, and they are named.
    assert table.loc["speaker", "read"] == "decodable"
    assert "spectrum (kept)" in table.loc["speaker", "explained_by"]
    assert table.loc["speaker", "use"] == "not used at this site"
    assert table.loc["speaker^negated", ["read", "use"]].tolist() == ["absent", "not used at this site"]
    assert table.role.to_dict() == {
        "speaker": "basic feature",
        "negated^match": "needed XOR",
        "speaker^negated": "pre-registered",
    }
    assert "truth" in table.loc["negated^match", "note"]


def test_a_saturated_rung_is_compared_in_bits(design):
    table = judged(design)
    assert table.loc["speaker", "bits_above"] == pytest.approx(0.0, abs=0.02)


def test_a_saturated_model_is_compared_in_bits_too(design):
    noisy = probes()
    of_rungs = (noisy.weights == "spectrum") & (noisy.target == "negated^match")
    # As far from the model in accuracy as four deviations: too few of them for three seeds, unlike in bits.
    noisy.loc[of_rungs & (noisy.score == "accuracy"), "estimate"] = [0.6, 0.7, 0.8]
    noisy.loc[of_rungs & (noisy.score == "bits"), "estimate"] = [0.1, 0.11, 0.12]
    assert judged(design, probes=noisy).loc["negated^match", "read"] == "learned"
    below = (noisy.target == "negated^match") & (noisy.weights == "trained") & (noisy.score == "accuracy")
    noisy.loc[below & noisy.layer.isin([-1]), "estimate"] = 0.94
    assert judged(design, probes=noisy).loc["negated^match", "read"] == "decodable"


def test_a_collapsed_rung_explains_nothing(design):
    dead = row(weights="spectrum", layer=1, score="collapsed", estimate=1.0)
    table = judged(design, health=tables.frame([dead]))
    assert table.loc["negated^match", "read"] == "decodable"
    assert table.loc["negated^match", "explained_by"].startswith(judgement.NO_RUNG)


def test_what_no_fold_holds_out_is_not_testable(design):
    assert set(judged(design, audit=audit("not testable")).read) == {"not testable"}


def test_more_targets_make_each_verdict_harder(design):
    alone = use()
    alone = alone[alone.target == "negated^match"]
    assert judged(design, use=alone).loc["negated^match", "use_p"] < judged(design).loc["negated^match", "use_p"]


def test_the_map_is_drawn_with_and_without_rows(design):
    table = judged(design).reset_index()
    for rows in (table, table.iloc[:0]):
        figure = verdict_plots.draw(rows, design.aliases)
        assert figure.axes
