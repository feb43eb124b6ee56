"""The stage of dictionaries on a small published model."""

from pathlib import Path

import numpy as np
import pytest

from counterprobe import (
    checkpoints,
    dictionary_fitting,
    dictionary_scores,
    dictionary_table,
    manifest,
    pretrained,
    statements,
)

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
SPEC = {
    "dictionaries": {
        "layers": [2], "inputs": ["design"], "held_out": 0.25, "first_token": False, "sizes": [2], "k": [8], "seeds": 1,
        "steps": 200, "batch": 256, "learning_rate": 0.003, "ica_iterations": 10, "items": 4, "seed": 0,
        "sparse_probes": [2], "sites": 4, "directions": 4, "distances": [0.1, 1.0], "draws": 10, "jitter": 0.5,
    },
    "activations": {"primary_position": "period", "primary_bos": True, "token_budget": 4096},
    "probes": {"outer_folds": 4, "seed": 0},
    "statistics": {"resamples": 50, "confidence": 0.95},
    "design": {"protocols": ["items"], "unreadable": "drop"},
}  # fmt: skip


@pytest.fixture(scope="module")
def table(shared, tmp_path_factory):
    model = shared / "models" / "stories260k"
    if not model.is_dir():
        pytest.skip("no stories260k among the shared models")
    root = tmp_path_factory.mktemp("stage")
    manifest.write(root / "manifest.json", checkpoints.folder_content(model, source="directory"), {})
    corpus = {"topics": {"cities": 8, "animals": 8}, "carriers": 8, "answer": "none"}
    design = statements.factorial("f", {"blocks": 4}, statements.world(corpus, RESOURCES))
    folders = []
    for weights in ("trained", "init"):
        folder = root / weights
        folder.mkdir()
        content = dictionary_fitting.fit(
            root / "manifest.json", design, weights, SPEC, folder, model="stories", device="cpu"
        )
        manifest.write(folder / "manifest.json", {"files": manifest.describe_files(folder), **content}, {})
        folders.append(folder / "manifest.json")
    again = root / "trained" / "layer_2.design.sae.size128.k8.seed0"
    entry = {"source": "directory", "model": "stories", "path": str(again)}
    manifest.write(root / "again" / "manifest.json", pretrained.register(entry), {})
    cell = {"model": "stories", "revision": "main", "design": "f"}
    return dictionary_scores.measure(
        root / "manifest.json", design, folders, SPEC, cell, device="cpu", pretrained=[root / "again" / "manifest.json"]
    )


@pytest.mark.slow
def test_every_number_has_both_baselines_and_an_sae_reconstructs_better_than_random_rows(table):
    assert np.isfinite(table[["estimate", "random_dictionary", "random_model"]].to_numpy(float)).all()
    trained = table[(table.weights == "trained") & (table.dictionary == "sae")]
    fvu = trained[trained.score == "fvu"].iloc[0]
    assert fvu.upper < fvu.random_dictionary
    kl = trained[trained.score == "kl"].set_index("kind")
    assert kl.estimate["reconstruction"] < kl.random_dictionary["reconstruction"]
    assert kl.estimate["reconstruction"] < kl.estimate["mean"]


@pytest.mark.slow
def test_a_dictionary_read_back_as_somebody_elses_has_the_same_numbers(table):
    about = ["weights", "kind", "target", "at", "score"]
    columns = [*about, "size", "k", "estimate", "lower", "upper", "random_dictionary"]
    parts = []
    for name in ("sae", "pretrained:again"):
        rows = table[(table.dictionary == name) & (table.weights == "trained")]
        parts.append(rows[columns].sort_values(about, ignore_index=True))
    assert len(parts[0]) > 50
    assert dictionary_table.PRETRAINED + "again" in set(table.dictionary)
    np.testing.assert_allclose(
        parts[0].select_dtypes("number").to_numpy(float), parts[1].select_dtypes("number").to_numpy(float), rtol=1e-6
    )
    assert parts[0][["kind", "score"]].equals(parts[1][["kind", "score"]])
