"""Snakemake's conda deployment: planned with a conda that only answers, and done for real with a thin one."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ANSWERS = """#!/bin/sh
case "$*" in
  "info --json") echo '{"conda_prefix": "'"${0%/bin/*}"'", "platform": "linux-64"}' ;;
  --version) echo "conda 24.7.1" ;;
  "config --get"*) echo '{"get": {"channel_priority": "strict"}}' ;;
  *) echo "conda: not asked to do that when planning: $*" >&2; exit 1 ;;
esac
"""
WORKFLOW = """
rule all:
    input: "proper.json", "leaking.json"
"""
RULE = """
rule {name}:
    output: "{name}.json"
    log: "{name}.log"
    conda: "least.yaml"
    params: spec="{{}}", code=""
    script: "scripts/{name}.py"
"""
SCRIPT = """
import {module}

from counterprobe import runtime

with runtime.job(snakemake) as job:
    job.write_json({{"from": {module}.__file__}})
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def snakemake(*arguments, folder, bin_folder, **environment):
    path = f"{bin_folder}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments],
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_graph_is_planned_with_an_environment_for_every_rule(fresh_checkout, tmp_path):
    executable(tmp_path / "bin" / "conda", ANSWERS)
    arguments = ("--workflow-profile", "profiles/conda", "--dry-run", "--configfile", "config/smoke.yaml", "--forceall")
    planned = snakemake(*arguments, folder=fresh_checkout().root, bin_folder=tmp_path / "bin")
    assert planned.returncode == 0, planned.stdout[-3000:]
    named = set(re.findall(r"Conda environment (?:\S*/)?(\w+)\.yaml will be created", planned.stdout))
    assert named == {"torch", "plots", "hub"}


@pytest.fixture(scope="module")
def conda(tmp_path_factory):
    """A conda that solves and installs from a channel with this machine's own Python and pip."""
    kit = ROOT.parent / "shared" / "conda"
    if not kit.is_dir():
        pytest.skip("no ../shared/conda beside the checkout")
    for package in ("rattler", "conda_package_handling"):
        pytest.importorskip(package, reason="needs py-rattler and conda-package-handling")
    if shutil.which("patchelf") is None:
        pytest.skip("needs patchelf")
    wheels = sorted(Path(sys.base_prefix).glob("lib/python3.11/ensurepip/_bundled/pip-*.whl"))
    if not wheels:
        pytest.skip("needs a CPython 3.11 with its bundled pip")
    root = tmp_path_factory.mktemp("conda")
    channel = root / "channels" / "conda-forge"
    subprocess.run([sys.executable, kit / "make_channel.py", sys.base_prefix, channel, wheels[-1]], check=True)
    text = (kit / "thin" / "conda").read_text()
    executable(root / "bin" / "conda", f"#!{sys.executable}\n{text.partition(chr(10))[2]}")
    shutil.copy2(kit / "thin" / "activate", root / "bin" / "activate")
    return root


@pytest.mark.slow
def test_a_script_that_takes_a_package_from_the_host_is_refused(conda, tmp_path):
    shutil.copytree(ROOT / "workflow" / "scripts" / "counterprobe", tmp_path / "scripts" / "counterprobe")
    shutil.copytree(ROOT / "profiles" / "conda", tmp_path / "profiles" / "conda")
    (tmp_path / "least.yaml").write_text("channels: [conda-forge, nodefaults]\ndependencies: [python =3.11, pip]\n")
    (tmp_path / "Snakefile").write_text(WORKFLOW + RULE.format(name="proper") + RULE.format(name="leaking"))
    for name, module in (("proper", "pip"), ("leaking", "yaml")):
        (tmp_path / "scripts" / f"{name}.py").write_text(SCRIPT.format(module=module))
    done = snakemake(
        *("--workflow-profile", "profiles/conda", "--cores", "1", "--keep-going"),
        folder=tmp_path,
        bin_folder=conda / "bin",
        CONDA_CHANNEL_ALIAS=f"file://{conda}/channels",
        PYTHONNOUSERSITE="1",
    )
    assert done.returncode == 1, done.stdout[-3000:]
    (environment,) = (path for path in (tmp_path / ".snakemake" / "conda").iterdir() if path.is_dir())
    assert str(environment) in (tmp_path / "proper.json").read_text(), done.stdout[-3000:]
    assert not (tmp_path / "leaking.json").exists()
    said = (tmp_path / "leaking.log").read_text()
    assert re.match(r"yaml comes from /\S+/yaml/__init__\.py, not from the rule's environment ", said), said
    assert str(environment) in said
