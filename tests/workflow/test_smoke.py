"""The whole graph, end to end, on the smoke experiment."""

import json

import numpy as np
import pandas as pd
import pytest

from counterprobe import tables

SMOKE = ("--configfile", "config/smoke.yaml")


@pytest.fixture(scope="module")
def probes(smoke):
    return tables.read(smoke.root / "results/smoke/tables/probes.parquet")


def test_every_table_and_figure_is_there(smoke):
    for table in (
        "ablation",
        "audit",
        "behaviour",
        "capacity",
        "embedding",
        "geometry",
        "health",
        "interference",
        "neurons",
        "probes",
        "steering",
        "training",
    ):
        assert len(pd.read_parquet(smoke.root / f"results/smoke/tables/{table}.parquet")) > 0
    for figure in (
        "factorial_small/geometry",
        "factorial_small/layers_by_step",
        "factorial_small/ladder",
        "factorial_small/needed",
        "factorial_small/mechanisms",
        "factorial_small/steering",
        "factorial_small/neurons",
        "factorial_small/layers",
        "embedding",
        "rax_small/leak",
    ):
        for suffix in ("pdf", "png", "csv"):
            assert (smoke.root / f"results/smoke/figures/tiny/{figure}.{suffix}").stat().st_size > 500
    assert not (smoke.root / "results/default").exists()


def test_a_second_run_has_nothing_to_do(smoke):
    assert "Nothing to be done" in smoke.run(*SMOKE)


def test_another_experiment_and_back_plans_nothing(smoke):
    smoke.run("--dry-run", "--quiet", "all")
    assert "Nothing to be done" in smoke.run("--dry-run", *SMOKE)


def test_every_number_has_its_key_its_interval_and_its_sample(probes):
    main = probes[(probes.score == "accuracy") & (probes.probe == "logistic") & (probes.control == "none")]
    assert set(main.weights) == {"trained", "init", "none"}
    assert set(main[main.design == "factorial_small"].protocol) == {"carriers", "items"}
    assert set(main[main.design == "rax_small"].protocol) == {"items", "published"}
    assert (main.lower <= main.upper).all()
    # A percentile interval can miss its own estimate, but not often.
    assert ((main.lower <= main.estimate + 1e-6) & (main.estimate <= main.upper + 1e-6)).mean() > 0.98
    assert (main.n_groups >= 2).all()
    assert (main[main.design == "factorial_small"].level == 0.5).all()
    assert set(main[main.protocol != "published"].layer) >= {-1, 0, 1, 2}


def test_label_controls_stand_beside_the_trained_model(probes):
    controls = probes[(probes.design == "factorial_small") & (probes.weights == "trained") & (probes.step == 8)]
    for control in ("dichotomy", "shuffled", "control_task"):
        assert (controls.control == control).any()
    for representation in ("token_embeddings", "additive_surrogate", "erased"):
        assert (controls.representation == representation).any()
    tokens = controls[(controls.representation == "token_embeddings") & (controls.score == "accuracy")]
    xors = tokens[tokens.target.str.contains("^", regex=False)]
    assert np.allclose(xors.estimate, 0.5, atol=0.02)


def test_neurons_and_embedding_stand_beside_their_controls(smoke):
    neurons = tables.read(smoke.root / "results/smoke/tables/neurons.parquet")
    assert (neurons[neurons.score == "attribution_error"].estimate < 1e-5).all()
    assert {"none", "random_neurons", "dichotomy"} <= set(neurons.control)
    assert set(neurons[neurons.representation == "neurons"].weights) == {"trained", "permuted_columns"}
    embedding = tables.read(smoke.root / "results/smoke/tables/embedding.parquet")
    assert set(embedding.weights) == {"trained", "init", "matched_gaussian", "shuffled_columns"}
    assert set(embedding.control) == {"none", "shuffled"}


def test_every_frozen_embedding_has_a_trainable_twin(smoke):
    table = pd.read_parquet(smoke.root / "results/smoke/tables/frozen_embeddings.parquet")
    losses = (
        table[table.score == "loss"]
        .groupby("embedding")[["tied", "seed"]]
        .apply(lambda of: set(of.itertuples(index=False)))
    )
    assert set(losses.index) == {"trainable", "gaussian", "one_row", "one_row_tuned", "trainable_tuned"}
    assert all(cells == losses["trainable"] for cells in losses)
    gaps = table[table.score == "loss_gap"]
    assert set(zip(gaps.embedding, gaps.tied, strict=True)) == {
        (kind, tied) for kind in ("gaussian", "one_row", "one_row_tuned") for tied in (False, True)
    }
    assert (gaps.lower <= gaps.upper).all()


def test_geometry_of_every_cell(smoke):
    geometry = tables.read(smoke.root / "results/smoke/tables/geometry.parquet")
    assert set(geometry.weights) == {"trained", "init"}
    assert set(geometry.design) == {"factorial_small", "rax_small"}
    salience = geometry[(geometry.score == "salience") & (geometry.design == "factorial_small")]
    assert salience.groupby(["revision", "weights", "seed", "position", "bos", "layer"]).size().eq(15).all()
    assert (salience.estimate.notna() | salience.note.str.contains("constant")).all()
    flagged = geometry[geometry.target == "negated^match"]
    assert flagged.note.str.startswith("closed under XOR: negated ^ match = truth").all()
    assert geometry[geometry.estimate.isna()].note.ne("").all()


def test_what_comes_first_is_counted_for_every_protocol(smoke):
    training = tables.read(smoke.root / "results/smoke/tables/training.parquet")
    counts = training[training.score == "cells_above_or"]
    assert set(counts.protocol) == {"carriers", "items", "published"}
    assert counts.note.str.contains("cells").all()


def test_the_planted_leak_shows_under_the_published_protocol_only(probes):
    planted = probes[(probes.model == "planted-additive") & (probes.score == "accuracy")]
    truth = planted[planted.target == "negated^match"].groupby("protocol").estimate.mean()
    assert truth["published"] < 0.4
    assert abs(truth["items"] - 0.5) < 0.06


def test_tables_are_byte_identical_for_one_core_and_two(smoke):
    table = "results/smoke/tables/probes.parquet"
    before = smoke.read(table)
    smoke.run(
        *SMOKE, "--forcerun", "train_probes", "control_probes", "probe_planted", "--until", "gather_probes", cores=1
    )
    assert smoke.read(table) == before


def test_manifests_name_no_path_of_this_machine(smoke):
    for path in (smoke.root / "results/smoke").rglob("manifest.json"):
        content = json.loads(path.read_text())["content"]
        assert str(smoke.root) not in json.dumps(content), path


def test_a_truncated_shard_stops_the_next_stage_and_is_named(smoke):
    shard = next((smoke.root / "results/smoke/activations").rglob("*.npy"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-8])
    try:
        done = smoke.snakemake(*SMOKE, "--forcerun", "train_probes", "--until", "train_probes")
    finally:
        shard.write_bytes(whole)
    assert done.returncode != 0
    assert shard.name in done.stdout
    assert "delete the folder and run again" in done.stdout
    smoke.run(*SMOKE)


def test_the_report_and_a_comparison_are_made_of_what_is_there(smoke):
    said = smoke.run(
        "write_report", "compare", "--configfile", "config/smoke.yaml", "--config", "compare=[smoke,smoke]"
    )
    assert "within noise" in said
    page = smoke.read("results/smoke/report.html").decode()
    assert page.count("<figure id=") == len(list((smoke.root / "results/smoke/figures").rglob("*.png")))
    assert "snakemake preamble" not in page
    assert str(smoke.root) not in page
    legs = pd.read_parquet(smoke.root / "results/smoke/tables/claim_legs.parquet")
    # Toys, dictionaries and the like are no part of this experiment; what is, answers.
    tables = {path.stem for path in (smoke.root / "results/smoke/tables").glob("*.parquet")}
    answered = legs[legs.table.isin(["probes", "geometry", "interference", "ablation", "capacity", "verdicts"])]
    assert {"probes", "geometry", "verdicts"} <= tables
    assert (answered.holds != "not run").sum() >= 15


def test_snakemakes_own_report_is_made_with_captions_and_categories(smoke):
    smoke.run("--configfile", "config/smoke.yaml", "--report", "results/smoke/snakemake-report.html")
    page = smoke.read("results/smoke/snakemake-report.html").decode()
    for said in ("Embedding and neurons", "how the features lie", "Salience is the share"):
        assert said in page
