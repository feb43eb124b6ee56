"""The preview of an experiment's cost: what it grows with, what it knows of models, and what the default run took."""

import copy
import time
from pathlib import Path

import pytest
import yaml

from counterprobe import configuration, cost

ROOT = Path(__file__).parents[2]
# A run of the default experiment on two cores, by Snakemake's benchmark files: core-seconds and resident memory (MB) of
# every rule that took more than one part in a hundred of the whole.
MEASURED = {
    "train_probes": (781, 556),
    "train_model": (768, 762),
    "measure_geometry": (380, 426),
    "extract_activations": (378, 684),
    "swap_features": (371, 973),
    "probe_capacity": (292, 732),
    "measure_behaviour": (179, 765),
    "ablate_components": (172, 733),
    "steer_features": (132, 1437),
    "compare_first_layers": (103, 502),
    "train_frozen_embeddings": (158, 548),
    "measure_interference": (89, 876),
    "control_probes": (86, 430),
    "train_dictionaries": (61, 634),
    "measure_dictionaries": (56, 769),
    "probe_neurons": (48, 650),
    "measure_health": (45, 334),
    "draw_superposition": (41, 1525),
    "train_toys": (41, 441),
}
MEASURED_SECONDS, MEASURED_MEMORY, MEASURED_DISK = 4740, 2.2e9, 1.46e9


def merged(base, overlay):
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merged(base[key], value)
        else:
            base[key] = value
    return base


@pytest.fixture(scope="module")
def default():
    return configuration.complete(yaml.safe_load((ROOT / "config.yaml").read_text()))


def changed(config, **sections):
    return configuration.complete(merged(copy.deepcopy(config), sections))


def within_two(estimate, measured):
    return 0.5 < estimate / measured < 2


def test_the_default_run_took_what_is_said(default):
    found = cost.estimate(default)
    assert within_two(2 * found.seconds(2), MEASURED_SECONDS)
    assert within_two(found.memory, MEASURED_MEMORY)
    assert within_two(found.disk, MEASURED_DISK)
    assert found.fetched == 0
    rows = {row.rule: row for row in found.rows}
    for rule, (seconds, memory) in MEASURED.items():
        assert within_two(rows[rule].seconds, seconds), rule
        assert within_two(rows[rule].memory, memory * 1e6), rule


@pytest.mark.parametrize(
    "more",
    [
        {"models": {"embedded": {"architecture": {"width": 256}}}},
        {"models": {"embedded": {"architecture": {"layers": 8}}}},
        {"models": {"embedded": {"training": {"steps": 4096}}}},
        {"models": {"embedded": {"revisions": ["step0", "step1024"] + [f"step{i}" for i in range(100, 120)]}}},
        {"corpora": {"plain": {"topics": {"cities": 96, "animals": 96}}}},
        {"controls": {"seeds": 6}},
        {"probes": {"penalties": [0.1 * i for i in range(1, 21)]}},
        {"activations": {"positions": ["period", "before_period", "last"]}},
        {"planted": {"seeds": 60}},
        {"superposition": {"trained": {"steps": 9000}}},
        {"run": {"frozen_embeddings": ["gaussian", "permuted"]}},
        {"frozen_embeddings": {"rows": 20}},
        {"rare_features": {"rows": [1000, 4000, 16000, 64000, 256000]}},
    ],
)
def test_more_costs_more(default, more):
    before, after = cost.estimate(default), cost.estimate(changed(default, **more))
    assert after.seconds(1) > before.seconds(1)
    assert after.disk >= before.disk
    assert after.memory >= before.memory
    assert after.jobs >= before.jobs


def test_dictionaries_of_planted_features_are_a_job_where_they_are_asked_for(default):
    jobs = {"plant_rare_features", "draw_rare_features"}
    assert jobs <= {row.rule for row in cost.estimate(default).rows}
    none = cost.estimate(changed(default, run={"rare_features": []}))
    assert not jobs & {row.rule for row in none.rows}


def test_more_cores_take_less_time(default):
    found = cost.estimate(default)
    assert found.seconds(4) == found.seconds(2) / 2


@pytest.mark.parametrize(
    ("repo", "parameters", "stored"),
    [
        ("EleutherAI/pythia-70m-deduped", 70.4e6, 166e6),
        ("EleutherAI/pythia-2.8b", 2.78e9, 5.7e9),
        ("EleutherAI/pythia-12b", 11.8e9, 23.8e9),
        ("openai-community/gpt2", 124e6, 548e6),
        ("gpt2-xl", 1.56e9, 6.4e9),
        ("somebody/their-model-1.3b-chat", 1.3e9, 2.6e9),
    ],
)
def test_published_models_have_their_published_sizes(repo, parameters, stored):
    shape = cost.shape({"source": "hub", "repo": repo})
    assert shape.parameters == pytest.approx(parameters, rel=0.05)
    assert shape.stored == pytest.approx(stored, rel=0.2)


def test_a_model_of_unknown_size_is_named_and_its_jobs_still_count(default):
    config = changed(default, models={"odd": {"source": "hub", "repo": "a/b", "revisions": ["main"]}})
    config["run"]["models"] = ["odd"]
    found = cost.estimate(config)
    assert found.unknown == ("odd",)
    assert "not counted: odd" in cost.table(found, 2)
    assert {row.rule: row.jobs for row in found.rows}["train_probes"] == 18


def test_a_folder_is_known_by_its_config(tmp_path):
    assert cost.shape({"source": "directory", "path": str(tmp_path)}) is None
    (tmp_path / "config.json").write_text('{"hidden_size": 64, "num_hidden_layers": 5}')
    (tmp_path / "model.safetensors").write_bytes(bytes(4000))
    assert cost.shape({"source": "directory", "path": str(tmp_path)}) == cost.Shape(5, 64, 1000.0, 0.0)


def test_texts_of_a_table_are_its_rows(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nx,1\ny,0\n")
    design = {"source": "csv", "files": [{"path": str(tmp_path / "a.csv")}, {"path": str(tmp_path / "later.csv")}]}
    assert cost.texts(design, {}) == 1002


def test_the_suite_is_previewed_in_seconds(default):
    sizes = ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
    models = {f"pythia-{s}": {"source": "hub", "repo": f"EleutherAI/pythia-{s}", "revisions": "pythia"} for s in sizes}
    config = changed(default, models=models)
    config["run"] |= {"models": list(models), "toys": []}
    started = time.process_time()
    found = cost.estimate(config)
    assert time.process_time() - started < 5
    assert found.jobs > 8 * 154 * 4
    assert 5e12 < found.fetched < 1e13
    assert "TB to download" in cost.table(found, 16)


def test_the_table_is_lines_of_one_width(default):
    lines = cost.table(cost.estimate(default), 2).splitlines()
    end = lines.index("")
    assert len({len(line) for line in lines[:end]}) == 1
    assert lines[end + 1].endswith("nothing to download")
