"""What the figures select: one model, one design, the layer each fold chose, and no baseline taken for a layer."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

from counterprobe import plots, statements, tables

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
RUNGS = (("trained", "kept", 1), ("init", "kept", 2), ("init", "randomised", 2), ("spectrum", "kept", 2))


@pytest.fixture(scope="module")
def design():
    world = statements.world({"topics": {"cities": 8, "animals": 8}, "carriers": 4}, RESOURCES)
    return statements.factorial("f", {"blocks": 4}, world)


@pytest.fixture(scope="module")
def probes(design):
    """Two models with the same revisions; every accuracy tells where it comes from."""
    rows = []
    for model, revision, (weights, embeddings, seeds), bos in itertools.product(
        ("one", "two"), ("step0", "step4"), RUNGS, (False, True)
    ):
        if weights != "trained" and revision == "step0":
            continue
        for seed, layer, target in itertools.product(range(seeds), (-1, 0, 1), plots.shown_targets(design)):
            base = {"one": 0.5, "two": 0.7}[model]
            row = {
                **tables.NOT_APPLICABLE,
                "model": model,
                "revision": revision,
                "step": int(revision[4:]),
                "weights": weights,
                "embeddings": embeddings,
                "seed": seed,
                "design": "f",
                "position": "period",
                "bos": bos,
                "layer": layer,
                "target": target,
                "protocol": "carriers",
                "probe": "logistic",
                "score": "accuracy",
                "estimate": base + 0.01 * layer,
                "lower": base - 0.1,
                "upper": base + 0.1,
                "n_texts": 8,
                "n_groups": 4,
            }
            rows.append(row)
            if layer == 0 and weights == "trained":
                rows.append({**row, "representation": "token_embeddings", "estimate": 0.99})
    return tables.frame(rows)


@pytest.fixture(scope="module")
def health():
    row = {
        **tables.NOT_APPLICABLE,
        "model": "two",
        "revision": "step4",
        "step": 4,
        "design": "f",
        "n_texts": 8,
        "n_groups": 1,
    }
    return tables.frame(
        {
            **row,
            "weights": weights,
            "seed": seed,
            "layer": layer,
            "score": "collapsed",
            "estimate": float(weights == "init"),
        }
        for weights, seed, layer in itertools.product(("init", "spectrum"), (0, 1), (0, 1))
    )


SITE = {"protocol": "carriers", "position": "period", "bos": True}


def test_seven_parities_are_shown(design):
    assert len(plots.shown_targets(design)) == 7
    assert not any("suffix" in target for target in plots.shown_targets(design))


def test_layers_by_step_is_one_model_at_real_layers(probes, design):
    rows = plots.layers_by_step(probes, "two", design, **SITE)
    assert set(rows.layer) == {0, 1}
    assert np.allclose(rows.estimate, 0.7 + 0.01 * rows.layer)
    assert len(rows) == 2 * 2 * 7
    plt.close(plots.draw_layers_by_step(rows, design))
    plt.close(plots.draw_layers_by_step(rows[rows.revision == "step4"], design))


def test_the_ladder_has_step0_and_marks_what_collapsed(probes, health, design):
    rows = plots.ladder(probes, health, "two", design, **SITE)
    assert set(rows.weights) == {"trained", "step0", "init", "spectrum"}
    assert set(rows.layer) == {-1}
    assert (rows.estimate < 0.9).all()
    assert set(rows[rows.collapsed > 0.5].weights) == {"init"}
    figure = plots.draw_ladder(rows, design)
    names = {text.get_text() for axis in figure.axes if axis.get_legend() for text in axis.get_legend().get_texts()}
    assert "collapsed: not a control" in names
    plt.close(figure)


def test_needed_and_needless_are_pairs_at_the_chosen_layer(probes, design):
    behaviour = tables.frame([])
    rows = plots.needed_and_needless(probes, behaviour, "one", design, protocol="carriers", bos=False)
    assert set(rows.target) == {"speaker^negated", "speaker^match", "negated^match"}
    assert set(rows.layer) == {-1}
    plt.close(plots.draw_needed_and_needless(rows, design))


def geometry_rows(design):
    for layer, target, score in itertools.product((0, 1, 2), plots.shown_targets(design), plots.GEOMETRY_PANELS):
        if score == "gain_share" and target.count("^") != 1:
            continue
        for revision, weights in (("step0", "trained"), ("step4", "trained"), ("step4", "init")):
            estimate = np.nan if layer == 0 or score == "gain_share" else 0.3
            yield {
                **tables.NOT_APPLICABLE,
                "model": "one",
                "revision": revision,
                "step": int(revision[4:]),
                "weights": weights,
                "design": "f",
                "position": "period",
                "layer": layer,
                "target": target,
                "score": score,
                "estimate": estimate,
                "lower": estimate - 0.5,
                "upper": estimate + 0.1,
                "n_texts": 8,
                "n_groups": 4,
            }


def test_geometry_is_of_the_last_revision_and_names_what_is_closed_under_xor(design):
    table = tables.frame(geometry_rows(design))
    rows = plots.geometry(table, "one", design, position="period", bos=False)
    assert set(rows.revision) == {"step4"}
    assert set(rows.weights) == {"trained"}
    figure = plots.draw_geometry(rows, design)
    names = {text.get_text() for text in figure.legends[0].get_texts()}
    assert len(names) == 7
    assert "truth = negated ⊕ match" in names
    assert "nothing told from 0" in {text.get_text() for axis in figure.axes for text in axis.texts}
    plt.close(figure)


def test_files_are_equal_for_equal_figures(probes, design, tmp_path):
    rows = plots.layers_by_step(probes, "one", design, **SITE)
    for name in ("a", "b"):
        outputs = {suffix: str(tmp_path / f"{name}.{suffix}") for suffix in ("pdf", "png", "csv")}
        figure = plots.draw_layers_by_step(rows, design)
        plots.save(figure, rows, outputs)
        plt.close(figure)
    for suffix in ("pdf", "png", "csv"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
