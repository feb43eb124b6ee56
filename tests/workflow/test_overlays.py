"""The overlays for published models: what they ask for, and that the largest is planned in little time and memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from counterprobe import configuration, cost, dictionaries, plan
from counterprobe.revisions import PYTHIA_STEPS

ROOT = Path(__file__).parents[2]
SUITE = "pythia-suite.yaml"
HEADROOM = {"seconds": 60, "bytes": 2e9}
OF_A_CHECKPOINT = {
    "resolve_revision",
    "download_revision",
    "extract_activations",
    "measure_behaviour",
    "measure_geometry",
    "train_probes",
}


def merged(root, overlay, **models):
    """The complete configuration of an overlay on the default one, as Snakemake puts them together."""
    files = [root / "config.yaml", root / "config" / overlay]
    config = {}
    for file in files:
        for key, value in yaml.safe_load(file.read_text()).items():
            config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    for model in config["models"].values() if models else ():
        if model["source"] == "hub":
            model.update(models)
    return configuration.validate(config, files)


def test_the_suite_is_every_size_at_every_checkpoint(root):
    config = merged(root, "pythia-suite.yaml")
    trained = [unit for unit in plan.units(config) if unit.weights == plan.TRAINED]
    assert len(trained) == 8 * 154
    rungs = [unit for unit in plan.units(config) if unit.weights != plan.TRAINED]
    assert {unit.revision for unit in rungs} == {"step143000"}
    assert cost.estimate(config).unknown == ()
    for name in config["run"]["models"]:
        assert set(config["models"][name]["allow"]) == {"step143000"}


def test_jobs_of_the_suite_grow_by_six_a_checkpoint(root):
    whole = {row.rule: row.jobs for row in cost.estimate(merged(root, "pythia-suite.yaml")).rows}
    few = [f"step{step}" for step in PYTHIA_STEPS[::10]] + ["step143000"]
    part = {row.rule: row.jobs for row in cost.estimate(merged(root, "pythia-suite.yaml", revisions=few)).rows}
    grown = {rule: jobs - part[rule] for rule, jobs in whole.items() if jobs != part[rule]}
    assert grown == dict.fromkeys(OF_A_CHECKPOINT, 8 * (154 - len(few)))


def test_gpt2_is_one_checkpoint_with_the_ladder(root):
    config = merged(root, "gpt2.yaml")
    assert {unit.weights for unit in plan.units(config)} == {plan.TRAINED, *config["run"]["controls"]}
    assert {unit.revision for unit in plan.units(config)} == {"main"}


def test_a_published_sae_is_fetched_for_its_model_and_read_at_its_layer(root):
    config = merged(root, "gpt2-sae.yaml")
    assert plan.pretrained(config) == ("bloom",)
    assert {unit.weights for unit in plan.dictionary_units(config)} == {plan.TRAINED, *config["dictionaries"]["rungs"]}
    entry = config["dictionaries"]["pretrained"]["bloom"]
    assert (entry["source"], entry["revision"], entry["centred"]) == ("hub", "main", True)
    assert dictionaries.layer_of(entry["folder"]) in config["dictionaries"]["layers"]
    rows = {row.rule: row for row in cost.estimate(config).rows}
    assert rows["register_dictionary"].jobs == 1
    # 2 x 24,576 x 768 floats.
    assert rows["register_dictionary"].fetched == pytest.approx(151e6, rel=0.01)


def test_an_error_names_the_overlay_that_it_stands_in(fresh_checkout, tmp_path):
    checkout = fresh_checkout()
    (tmp_path / "mine.yaml").write_text("experiment: mine\ncontrols: {seeds: 1}\n")
    overlays = ("--configfile", "config/smoke.yaml", str(tmp_path / "mine.yaml"))
    said = checkout.snakemake("--dry-run", *overlays).stdout
    assert f"{tmp_path}/mine.yaml line 2, controls.seeds: 1 is below 2" in said


@pytest.mark.slow
@pytest.mark.parametrize("overlay", sorted({path.name for path in (ROOT / "config").glob("*.yaml")} - {SUITE}))
def test_every_overlay_is_planned(fresh_checkout, overlay):
    checkout = fresh_checkout()
    if overlay == "own-model.yaml" and not (checkout.root.parent / "shared").is_dir():
        pytest.skip("no ../shared beside the checkout")
    said = checkout.run("--dry-run", "--quiet", "rules", "--configfile", f"config/{overlay}")
    assert int(re.search(r"^total +(\d+)$", said, flags=re.MULTILINE)[1]) > 10


MEASURED = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "snakemake", *sys.argv[1:]], stdout=subprocess.PIPE, text=True, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
scale = 1 if sys.platform == "darwin" else 1024
print(done.stdout)
print("used", used.ru_utime + used.ru_stime, used.ru_maxrss * scale)
"""


@pytest.mark.slow
def test_the_suite_is_planned_without_a_network_in_little_time_and_memory(fresh_checkout):
    """Processor time, so that a loaded machine does not fail it."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "--dry-run", "--quiet", "rules", "--configfile", f"config/{SUITE}"],
        cwd=fresh_checkout().root,
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, flags=re.MULTILINE))
    assert int(jobs["download_revision"]) == 8 * 154
    assert int(jobs["audit_revisions"]) == 8
    assert int(jobs["total"]) < 6.3 * 8 * 154
    seconds, size = map(float, re.search(r"^used (\S+) (\S+)$", done.stdout, flags=re.MULTILINE).groups())
    assert seconds < HEADROOM["seconds"]
    assert size < HEADROOM["bytes"]
