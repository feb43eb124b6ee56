"""The lock and the conda environments say the same, name no index, and are complete."""

import ast
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ("torch", "plots", "hub")


@pytest.fixture(scope="module")
def lock():
    spec = importlib.util.spec_from_file_location("lock", ROOT / "envs" / "lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def locked(lock):
    return lock.parse((ROOT / "requirements.lock").read_text())


def requirement(block):
    return Requirement(block.split("\\")[0].strip())


def asked_for():
    lines = (ROOT / "envs" / "requirements.in").read_text().splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def locked_lines(environment):
    text = (ROOT / "envs" / f"{environment}.post-deploy.sh").read_text()
    return text.split("<<'LOCK'\n")[1].removesuffix("LOCK\n")


def test_every_requirement_is_locked_at_a_version_it_allows(locked):
    for wanted in asked_for():
        pinned = requirement(locked[canonicalize_name(wanted.name)])
        (specifier,) = pinned.specifier
        assert specifier.operator == "=="
        assert wanted.specifier.contains(Version(specifier.version)), wanted


def test_every_locked_file_has_a_hash_and_no_place(locked):
    assert len(locked) > 100
    for name, block in locked.items():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), name
    for file in [
        ROOT / "requirements.lock",
        *(ROOT / "envs" / f"{name}.post-deploy.sh" for name in ENVIRONMENTS),
    ]:
        text = file.read_text()
        assert not re.search(r"://|--index|--extra-index|--find-links|--trusted-host|file:| @ |/\w+/\w+/", text), (
            file.name
        )


def test_torch_and_what_only_its_cuda_build_brings_are_not_locked(locked, lock):
    assert not [name for name in locked if re.match(r"torch$|triton|nvidia|cuda", name)]
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", lock.torch_pin())


def test_the_lock_changes_with_the_torch_pin(lock, locked):
    # make looks at the lock's hash alone to see whether .venv is stale.
    assert lock.torch_pin() in (ROOT / "requirements.lock").read_text()
    assert lock.render_lock(locked, lock.torch_pin()) == (ROOT / "requirements.lock").read_text()
    assert lock.render_lock(locked, "torch==9.9.9") != (ROOT / "requirements.lock").read_text()


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_conda_environment_has_the_lines_of_the_lock(environment, lock, locked):
    inside = lock.parse(locked_lines(environment))
    assert inside
    assert {name: locked[name] for name in inside} == inside
    yaml_file, script = lock.environment_files(environment)
    assert script.read_text() == lock.render_post_deploy(environment, inside)
    assert yaml_file.read_text() == lock.render_yaml(environment, lock.torch_pin())
    assert set(lock.ENVIRONMENTS[environment]) - {"torch"} <= set(inside)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_conda_environment_is_closed(environment, lock, locked):
    """Whatever a package of it needs, by the metadata of the installed packages, is in it."""
    names = set(lock.parse(locked_lines(environment)))
    given = {*names, "torch"} if "torch" in lock.ENVIRONMENTS[environment] else names
    seen = 0
    for name in names:
        if not applies(requirement(locked[name])):
            continue
        try:
            needed = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue
        seen += 1
        for need in needed:
            if applies(need):
                assert canonicalize_name(need.name) in given, f"{name} needs {need}"
    assert seen > len(names) / 2


def applies(wanted):
    return wanted.marker is None or wanted.marker.evaluate({"extra": ""})


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_conda_environment_is_python_pip_and_torch(environment, lock):
    definition = yaml.safe_load((ROOT / "envs" / f"{environment}.yaml").read_text())
    assert definition["channels"] == ["conda-forge", "nodefaults"]
    conda = [entry for entry in definition["dependencies"] if isinstance(entry, str)]
    pip = [entry["pip"] for entry in definition["dependencies"] if isinstance(entry, dict)]
    assert conda == ["python =3.11", "pip"]
    assert pip == ([[lock.torch_pin()]] if environment == "torch" else [])


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_post_deploy_script_hands_its_lines_to_pip(environment, tmp_path):
    """Run it, with a pip that writes down what it is told."""
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >"$OUT/arguments"\ncat >"$OUT/lines"\n')
    pip.chmod(pip.stat().st_mode | stat.S_IXUSR)
    script = ROOT / "envs" / f"{environment}.post-deploy.sh"
    assert script.read_text().startswith("#!env bash\n")
    environment_variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "OUT": str(tmp_path)}
    # -r /dev/stdin is pip's to open; here cat reads the same here-document.
    subprocess.run(["bash", str(script)], env=environment_variables, check=True)
    arguments = (tmp_path / "arguments").read_text().split()
    assert arguments[0] == "install"
    assert {"--no-deps", "--require-hashes", "/dev/stdin"} <= set(arguments)
    assert (tmp_path / "lines").read_text() == locked_lines(environment)


def rules():
    """(environment, script or notebook) of every rule of the workflow."""
    for file in sorted((ROOT / "workflow" / "rules").glob("*.smk")):
        for rule in re.split(r"\n(?=rule )", file.read_text()):
            environment = re.search(r'envs/(\w+)\.yaml"', rule)
            source = re.search(r'"\.\./((?:scripts|notebooks)/[^"]+)"', rule)
            if environment and source:
                yield pytest.param(environment[1], source[1], id=f"{environment[1]}-{source[1]}")


def imported_at_once(path):
    """What a script, notebook or library module imports when it is loaded, whichever function runs."""
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        lines = "".join("".join(cell["source"]) + "\n" for cell in cells).splitlines()
        source = "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))
    else:
        source = path.read_text()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("environment", "source"), rules())
def test_a_rules_environment_has_what_its_script_imports(environment, source, lock):
    """Snakemake puts its own packages behind an environment's: a missing one would be taken from there."""
    given = {*lock.parse(locked_lines(environment)), *lock.ENVIRONMENTS[environment]}
    distributions = packages_distributions()
    library = ROOT / "workflow" / "scripts" / "counterprobe"
    waiting, seen = [ROOT / "workflow" / source], set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for name in imported_at_once(path):
            top, _, inner = name.partition(".")
            if top == "counterprobe":
                module = library / f"{inner.split('.')[0]}.py"
                if module.exists() and module not in seen:
                    waiting.append(module)
            elif top not in sys.stdlib_module_names:
                packages = {canonicalize_name(package) for package in distributions.get(top, [top])}
                assert packages & given, f"{path.name} imports {name}"


def test_the_pinned_snakemake_is_the_one_the_snakefile_asks_for(locked):
    snakefile = ROOT / "Snakefile"
    if not snakefile.exists():
        pytest.skip("no Snakefile yet")
    (asked,) = re.findall(r'min_version\("([\d.]+)"\)', snakefile.read_text())
    (pinned,) = requirement(locked["snakemake"]).specifier
    assert Version(asked) <= Version(pinned.version)


def test_what_a_lock_says_is_parsed_whatever_its_shape(lock):
    first = "A_b.c==1 ; python_version > '3' \\\n    --hash=sha256:0\n    # a remark\n"
    second = "z==2 \\\n    --hash=sha256:1\n"
    assert lock.parse(f"# a comment\n{first}{second}") == {"a-b-c": first, "z": second}
