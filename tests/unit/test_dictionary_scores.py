"""Scores of dictionaries where they are known, and the table with its two baselines."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from counterprobe import (
    checkpoints,
    dictionaries,
    dictionary_fitting,
    dictionary_plots,
    dictionary_scores,
    dictionary_table,
    language_model,
    manifest,
    pretrained,
    splits,
    statements,
    superposition_cells,
    tokenization,
)
from counterprobe.progress import UserError

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
CELL = {"model": "m", "revision": "step0", "design": "f"}
DICTIONARIES = {
    "layers": [1], "inputs": ["design", "random_tokens"], "held_out": 0.25, "first_token": False, "sizes": [2], "k": [4],
    "seeds": 2, "steps": 30, "batch": 128, "learning_rate": 0.003, "ica_iterations": 10, "items": 8, "seed": 0,
    "sparse_probes": [2], "sites": 4, "directions": 8, "distances": [0.1, 1.0], "draws": 10, "jitter": 0.5,
}  # fmt: skip
SPEC = {
    "dictionaries": DICTIONARIES,
    "activations": {"primary_position": "period", "primary_bos": False, "token_budget": 4096},
    "probes": {"outer_folds": 4, "seed": 0},
    "statistics": {"resamples": 50, "confidence": 0.95},
    "design": {"protocols": ["carriers"], "unreadable": "error"},
}


@pytest.fixture(scope="module")
def design():
    corpus = {"topics": {"cities": 8, "animals": 8}, "carriers": 8, "answer": "none"}
    return statements.factorial("f", {"blocks": 4}, statements.world(corpus, RESOURCES))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    corpus = {"topics": {"cities": 8, "animals": 8}, "carriers": 8, "answer": "none"}
    tokenizer = tokenization.word_level_tokenizer(statements.vocabulary(statements.world(corpus, RESOURCES)))
    shape = language_model.Architecture(layers=2, width=16, heads=2)
    model = language_model.build(shape, tokenizer.get_vocab_size(), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    folder = language_model.save_revision(model, tokenizer, root, 0)
    manifest.write(root / "manifest.json", checkpoints.folder_content(folder, source="train"), {})
    return root / "manifest.json"


@pytest.fixture(scope="module")
def folders(checkpoint, design, tmp_path_factory):
    made = []
    for weights in ("trained", "init"):
        folder = tmp_path_factory.mktemp(weights)
        content = dictionary_fitting.fit(checkpoint, design, weights, SPEC, folder, model="m", device="cpu")
        manifest.write(folder / "manifest.json", {"files": manifest.describe_files(folder), **content}, {})
        made.append(folder / "manifest.json")
    return made


def published(folder, tensors=(), **settings):
    """A ReLU dictionary of somebody else's, for the model's layer 1, and its manifest."""
    draw = torch.Generator().manual_seed(3)
    made = {"W_enc": torch.randn(16, 40, generator=draw), "b_enc": torch.zeros(40)}
    made |= {"W_dec": torch.randn(40, 16, generator=draw) / 4, "b_dec": torch.zeros(16)}
    path = folder / "files"
    path.mkdir(parents=True)
    save_file(made | dict(tensors), path / pretrained.WEIGHTS)
    cfg = {"architecture": "standard", "metadata": {"hook_name": "blocks.0.hook_resid_post"}} | settings
    (path / pretrained.CONFIG).write_text(json.dumps(cfg))
    content = pretrained.register({"source": "directory", "model": "m", "path": str(path)})
    manifest.write(folder / "theirs" / "manifest.json", content, {})
    return folder / "theirs" / "manifest.json"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    return published(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def table(checkpoint, design, folders, theirs):
    return dictionary_scores.measure(checkpoint, design, folders, SPEC, CELL, device="cpu", pretrained=[theirs])


def test_every_number_has_both_baselines(table):
    assert list(table) == list(dictionary_table.COLUMNS)
    assert np.isfinite(table[["estimate", "random_dictionary", "random_model"]].to_numpy(float)).all()
    assert not table.duplicated(list(dictionary_table.KEY)).any()
    assert (table.lower.isna() | (table.lower <= table.estimate + 1e-9)).all()
    assert (table.upper.isna() | (table.upper >= table.estimate - 1e-9)).all() or (
        # A percentile interval may miss a mean of few units; a ratio's never does.
        (table[table.upper < table.estimate - 1e-9].score == "sparse_probe").all()
    )


def test_nothing_was_left_out(table):
    kinds = {"sae", "frozen_decoder", "random", "pca", "ica", "neurons", "pretrained:theirs"}
    scores = {
        *("fvu", "fvu_dense", "fvu_rest", "l0", "silent", "token_entropy", "single_token", "nearest_cosine"),
        *("kl", "loss", "kl_ratio", "loss_recovered", "frequency", "sparse_probe"),
    }
    design = table[(table.inputs == "design") & (table.weights == "trained")]
    for kind in kinds:
        assert scores <= set(design[design.dictionary == kind].score), kind
    sae = design[design.dictionary == "sae"]
    moves = {"response", "magnitude_ratio", "above_random", "kurtosis", "z_score", "jitter_kl", "jitter_ratio", "mmcs"}
    assert moves <= set(sae.score)
    assert {"decoder", "diff_mean", "probe", "difference", "isotropic", "covariance"} <= set(
        sae[sae.score == "response"].kind
    )
    of_others = set(design[design.dictionary == "pretrained:theirs"].score)
    assert moves - {"mmcs"} <= of_others
    assert set(table[table.inputs == "random_tokens"].dictionary) == {"sae", "random"}


def test_baselines_are_the_numbers_of_the_same_table(table):
    site = {"weights": "trained", "inputs": "design", "seed": 0, "score": "fvu"}
    of = table[np.logical_and.reduce([table[name] == value for name, value in site.items()])].set_index("dictionary")
    # Two random dictionaries: one beside those trained here, one of the size and L0 of what somebody else trained.
    random, beside = of.loc["random"].sort_values("size").estimate
    assert (of[~of.index.isin(["random", "pretrained:theirs"])].random_dictionary == random).all()
    assert of.loc["pretrained:theirs"].random_dictionary == beside
    assert len({random, beside}) == 2
    other = table[np.logical_and.reduce([table[n] == v for n, v in {**site, "weights": "init"}.items()])]
    other = other.set_index("dictionary")
    for kind in of.index.difference(["random"]):
        assert of.loc[kind].random_model == other.loc[kind].estimate
        assert other.loc[kind].random_model == other.loc[kind].estimate
    moved = table[(table.score == "response") & (table.weights == "trained") & (table["at"] == 1)]
    rows = moved[(moved.dictionary == "random")].set_index("size").estimate
    along = moved[moved.kind == "diff_mean"]
    assert set(along["size"]) == set(rows.index) == {32, 40}
    assert (along.random_dictionary == along["size"].map(rows)).all()


def test_scores_agree_with_what_can_be_known(table, design):
    trained = table[(table.weights == "trained") & (table.inputs == "design")]
    l0 = trained[trained.score == "l0"]
    others = l0.dictionary == "pretrained:theirs"
    assert (l0.estimate <= l0.k + 1e-9)[~others].all()
    # What is counted on some texts is its k, and what it has on others.
    assert (abs(l0.estimate / l0.k - 1) < 0.1)[others].all()
    own = trained[(trained.score == "kl_ratio") & (trained.kind == "isotropic")]
    own = own.set_index(["dictionary", "size", "seed"])
    kl = trained[trained.score == "kl"].set_index(["dictionary", "size", "seed", "kind"]).estimate
    for index in own.index:
        assert own.estimate[index] == pytest.approx(kl[(*index, "reconstruction")] / kl[(*index, "isotropic")])
    assert trained[(trained.score == "jitter_kl")].estimate.min() >= 0
    ratios = trained[(trained.score == "magnitude_ratio") & (trained.kind == "isotropic")].estimate
    assert ratios.tolist() == [pytest.approx(1)] * 2


def test_a_table_without_a_random_model_is_empty_and_says_so(table, caplog):
    alone = table[table.weights == "trained"].drop(columns=["random_dictionary", "random_model"])
    assert not len(dictionary_table.compared(alone))
    assert "left out" in caplog.text


def test_what_is_no_number_is_left_out_with_its_dependants(table):
    rows = table.drop(columns=["random_dictionary", "random_model"])
    gone = (rows.dictionary == "random") & (rows.weights == "trained") & (rows.score == "fvu") & (rows.seed == 0)
    rows.loc[gone, "estimate"] = np.nan
    found = dictionary_table.compared(rows)
    fvu = found[(found.score == "fvu") & (found.weights == "trained") & (found.inputs == "design")]
    assert set(fvu[fvu.seed == 0].dictionary) == set()
    assert np.isfinite(found.random_dictionary).all()


def test_files_of_tables(tmp_path, table):
    superposition_cells.write(table, tmp_path / "a.parquet", dictionary_table.COLUMNS)
    pd.testing.assert_frame_equal(dictionary_table.gather([tmp_path / "a.parquet"]), table)
    assert list(dictionary_table.gather([])) == list(dictionary_table.COLUMNS)
    superposition_cells.write(table.drop(columns="k"), tmp_path / "b.parquet", {
        name: kind for name, kind in dictionary_table.COLUMNS.items() if name != "k"
    })  # fmt: skip
    with pytest.raises(UserError, match="not a table of dictionaries"):
        dictionary_table.read(tmp_path / "b.parquet")


def test_both_figures_are_drawn_from_the_table(table, design, tmp_path):
    worth = dictionary_plots.worth(table, "m", design)
    assert {"fvu", "sparse_probe"} <= set(worth.score)
    assert {"sae", "ica", "pretrained:theirs"} <= set(worth.dictionary)
    assert set(worth[worth.dictionary == "random"]["size"]) == {32}
    assert set(worth.weights) == {"trained"}
    dictionary_plots.draw_worth(worth, design).savefig(tmp_path / "worth.png")
    disturbed = dictionary_plots.disturbed(table, "m", design)
    assert set(disturbed.dictionary) == {"sae"}
    dictionary_plots.draw_disturbed(disturbed).savefig(tmp_path / "disturbed.png")


def test_equal_runs_give_equal_dictionaries(checkpoint, design, folders, tmp_path):
    dictionary_fitting.fit(checkpoint, design, "init", SPEC, tmp_path, model="m", device="cpu")
    assert manifest.describe_files(tmp_path) == manifest.read(folders[1])["content"]["files"]


def test_a_dictionary_of_another_model_is_refused(folders):
    found = dictionary_fitting.open_folder(folders[0], width=16)
    assert {one.layer for one in found} == {1}
    with pytest.raises(UserError, match="made for width 16, and the model's is 32"):
        dictionary_fitting.open_folder(folders[0], width=32)


def test_a_dictionary_of_others_that_does_not_fit_is_refused(checkpoint, design, tmp_path):
    model, tokenizer = dictionary_fitting.open_model(checkpoint, "trained", device="cpu")

    def opened(name, **changes):
        path = published(tmp_path / name, **changes)
        return dictionary_fitting.published(path, "theirs", model, tokenizer, design, SPEC)

    with pytest.raises(UserError, match="made for width 12, and the model's is 16"):
        opened("a", tensors={"W_enc": torch.ones(12, 40), "W_dec": torch.ones(40, 12), "b_dec": torch.zeros(12)})
    with pytest.raises(UserError, match=r"made for blocks\.5\.hook_resid_pre, and the model has 2 blocks"):
        opened("b", metadata={"hook_name": "blocks.5.hook_resid_pre"})
    with pytest.raises(UserError, match=r"0\.00 latents fire on a token of 'f'"):
        opened("c", tensors={"b_enc": torch.full((40,), -1e6)})
    with pytest.raises(UserError, match="W_dec has entries that are not finite"):
        opened("d", tensors={"W_dec": torch.full((40, 16), float("nan"))})
    fixed = opened("e", architecture="topk", k=3)
    assert (fixed.layer, fixed.dictionary.k, fixed.dictionary.name) == (1, 3, "pretrained:theirs")


def test_layers():
    assert dictionary_fitting.layers_of("middle", 4) == [2]
    assert dictionary_fitting.layers_of("all", 2) == [0, 1, 2]
    with pytest.raises(UserError, match="no layer 5; there are 0 to 4"):
        dictionary_fitting.layers_of([1, 5], 4)


def test_ratios_and_their_interval():
    rng = np.random.default_rng(0)
    weights = rng.multinomial(40, np.ones(40) / 40, size=500).astype(np.float32)
    under = 1 + rng.random(40)
    found = dictionary_table.ratio(2 * under, under, weights, 0.95)
    assert found == {"estimate": pytest.approx(2), "lower": pytest.approx(2), "upper": pytest.approx(2)}
    noisy = dictionary_table.ratio(2 * under + rng.standard_normal(40), under, weights, 0.95)
    assert noisy["lower"] < noisy["estimate"] < noisy["upper"]
    assert np.isnan(dictionary_table.ratio(under, np.zeros(40), weights, 0.95)["estimate"])


def test_entropy_and_single_tokens_of_known_latents():
    ids = np.repeat(np.arange(4), 10)
    x = torch.zeros(40, 4)
    x[np.arange(40), ids] = 1.0
    x[:, 3] = 0.5
    made = dictionaries.neuron_basis(torch.zeros(4), 2)
    counts, live = dictionary_scores.firings(made, x, ids)
    assert (live <= 2).all()
    # +0, +1 and +2 fire on a token of their own, +3 on every one.
    assert counts[:4].sum(1).tolist() == [10, 10, 10, 40]
    assert (counts[4:] == 0).all()
    made = dataclasses.replace(made, decoder=torch.cat([torch.eye(4), torch.eye(4)]))
    assert dictionary_scores.nearest_cosine(dictionary_scores.directions_of(made)) == 0


def test_a_sparse_probe_reads_the_latent_that_says_it():
    rng = np.random.default_rng(0)
    labels = rng.random(120) < 0.5
    codes = torch.tensor(rng.random((120, 30)), dtype=torch.float32)
    codes[:, 17] += torch.tensor(2.0 * labels, dtype=torch.float32)
    folds = [
        splits.Fold(np.flatnonzero(np.arange(120) % 4 != k), np.flatnonzero(np.arange(120) % 4 == k), ())
        for k in range(4)
    ]
    assert dictionary_scores.sparse_probe(codes, labels, folds, 1).mean() == 1
    codes[:, 17] = 0
    assert 0.3 < dictionary_scores.sparse_probe(codes, labels, folds, 1).mean() < 0.7


def test_the_interval_of_a_rank_correlation_holds_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    # Spearman's correlation of a bivariate normal with Pearson's .5 is 6/π asin(.25).
    truth, held = 6 / np.pi * np.arcsin(0.25), []
    for _ in range(400):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 60).T
        found = dictionary_scores.rank_correlation(np.exp(x), y, 0.95)
        held.append(found["lower"] <= truth <= found["upper"])
    assert 0.92 <= np.mean(held) <= 0.98
    same = dictionary_scores.rank_correlation(np.arange(9.0), np.arange(9.0), 0.95)
    assert (same["estimate"], same["upper"]) == (1, 1)
