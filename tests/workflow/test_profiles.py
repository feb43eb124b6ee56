"""Every profile decides where jobs run and none decides which: what runs again is the same under all."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
# A site's own file completes profiles/slurm and is no profile by itself.
PROFILES = sorted(
    path.parent.name for path in (ROOT / "profiles").glob("*/profile.yaml") if "site" not in path.parent.name
)
RULE_FILES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))


def profile(name):
    return yaml.safe_load((ROOT / "profiles" / name / "profile.yaml").read_text())


def rules():
    """Name -> text of every rule."""
    found = {}
    for file in RULE_FILES:
        for text in re.split(r"^(?=rule \w+:)", file.read_text(), flags=re.MULTILINE)[1:]:
            found[re.match(r"rule (\w+)", text)[1]] = text
    return found


def local():
    listed = re.findall(
        r"^localrules:\n((?:    \w+,\n)+)", "".join(file.read_text() for file in RULE_FILES), re.MULTILINE
    )
    return {name for names in listed for name in re.findall(r"\w+", names)}


def test_there_are_profiles():
    assert {"default", "slurm", "conda"} <= set(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("key", ["rerun-triggers", "rerun-incomplete"])
def test_what_runs_again_does_not_depend_on_the_machine(name, key):
    assert profile(name)[key] == profile("default")[key]


def test_no_rule_retries_by_itself():
    assert not [name for name, text in rules().items() if "retries:" in text]


def test_every_job_of_a_cluster_asks_for_memory_and_time():
    silent = [
        name
        for name, text in rules().items()
        if name not in local() and not ("mem_mb=memory(" in text and "runtime=minutes(" in text)
    ]
    assert silent == []


def test_downloads_and_audits_stay_on_the_submitting_host():
    assert {"audit_revisions", "resolve_revision", "download_revision", "audit_design"} <= local()
    assert not set(profile("slurm")["groups"]) & local()


def test_groups_are_of_rules_that_there_are_and_hold_every_table_and_figure():
    slurm = profile("slurm")
    assert set(slurm["groups"]) <= set(rules())
    assert set(slurm["groups"].values()) == set(slurm["group-components"])
    for name in rules():
        if name.startswith("gather_"):
            assert slurm["groups"][name] == "tables"
        if name.startswith("draw_"):
            assert slurm["groups"][name] == "figures"


def test_rules_that_may_want_a_card_are_never_put_side_by_side():
    """The jobs of a group ask for the sum of what runs side by side: two of them would ask for two cards."""
    slurm = profile("slurm")
    for name, text in rules().items():
        if "gpu=gpus()" in text and name in slurm["groups"]:
            assert slurm["group-components"][slurm["groups"][name]] == 1


@pytest.mark.parametrize(
    "profiles",
    [
        ("--workflow-profile", "profiles/slurm"),
        ("--profile", "profiles/slurm", "--workflow-profile", "profiles/site.example"),
    ],
    ids=["slurm", "site"],
)
def test_the_graph_is_planned_for_a_cluster(profiles):
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="needs snakemake-executor-plugin-slurm")
    planned = subprocess.run(
        [sys.executable, "-m", "snakemake", *profiles, "--dry-run", "--configfile", "config/smoke.yaml", "--forceall"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert planned.returncode == 0, planned.stderr[-3000:]
    assert set(re.findall(r"^\s*(?:local)?rule (\w+):", planned.stdout + planned.stderr, re.MULTILINE)) > {
        "train_model",
        "train_probes",
        "gather_probes",
    }


def test_the_workflow_has_no_lint():
    done = subprocess.run([sys.executable, "-m", "snakemake", "--lint"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
