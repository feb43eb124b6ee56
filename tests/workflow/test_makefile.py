"""make on a machine that has Python and nothing else: what it checks, installs and leaves behind."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs GNU make")


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the real Makefile and nothing to install, in a folder with a space in its name."""
    folder = tmp_path / "a checkout"
    (folder / "envs").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "requirements.lock").write_text("# nothing\n")
    (folder / "envs" / "torch.txt").write_text("# nothing\n")
    (folder / "config.yaml").write_text("experiment: default  # a name\n")
    return folder


def make(folder, *arguments, path=None, **environment):
    """Run make with a PATH that has neither snakemake nor papermill, whoever runs this test."""
    path = path or f"{Path(sys.executable).resolve().parent}:/usr/bin:/bin"
    variables = {"PATH": path, "HOME": os.environ.get("HOME", "/"), **environment}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def stamp(folder):
    lock = hashlib.sha256((folder / "requirements.lock").read_bytes()).hexdigest()
    return f"{lock} {folder}\n"


def pretend_installed(folder, **programs):
    """An environment whose programs are shell scripts."""
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, text in programs.items():
        (binaries / name).write_text(f"#!/bin/sh\n{text}\n")
        (binaries / name).chmod(0o755)
    (folder / ".venv" / ".installed").write_text(stamp(folder))


def python_shim(folder, text):
    folder.mkdir()
    (folder / "python3").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "python3").chmod(0o755)
    return f"{folder}:{Path(sys.executable).resolve().parent}:/usr/bin:/bin"


def test_help_is_what_make_says_alone(checkout):
    done = make(checkout)
    assert done.returncode == 0
    assert "make figures" in done.stdout
    assert not (checkout / ".venv").exists()


def test_every_target_is_in_the_help():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    told = re.findall(r'@echo "make ([a-z-]+) ', makefile)
    assert set(targets) - set(told) == {"help", "environment"}


NO_VENV = f'case "$*" in *"-m venv"*) echo tried to; exit 1;; *) exec {sys.executable} "$@";; esac'


def test_the_environment_is_made_once_and_only_whole(checkout):
    (checkout / "requirements.lock").write_text("no-such-package==1 --hash=sha256:" + "0" * 64 + "\n")
    failed = make(checkout, "environment", PIP_NO_INDEX="1")
    assert failed.returncode != 0
    assert not (checkout / ".venv" / ".installed").exists()

    (checkout / ".venv" / "left from before").touch()
    (checkout / "requirements.lock").write_text("# nothing\n")
    first = make(checkout, "environment")
    assert first.returncode == 0, first.stderr
    assert "making .venv" in first.stdout
    assert not (checkout / ".venv" / "left from before").exists()
    assert (checkout / ".venv" / ".installed").read_text() == stamp(checkout)
    assert make(checkout, "environment").stdout == ""


def test_a_new_lock_and_a_moved_checkout_need_a_new_environment(checkout, tmp_path):
    path = python_shim(tmp_path / "bin", NO_VENV)
    pretend_installed(checkout)
    assert "tried to" not in make(checkout, "environment", path=path).stdout
    (checkout / "requirements.lock").write_text("# nothing else\n")
    assert "tried to" in make(checkout, "environment", path=path).stdout
    (checkout / ".venv" / ".installed").write_text(stamp(checkout))
    assert "tried to" not in make(checkout, "environment", path=path).stdout
    moved = checkout.rename(tmp_path / "elsewhere")
    assert "tried to" in make(moved, "environment", path=path).stdout


def test_figures_runs_the_installed_snakemake_and_it_finds_papermill(checkout):
    say = 'echo "arguments: $*"; echo "papermill: $(command -v papermill)"'
    pretend_installed(checkout, snakemake=say, papermill="true")
    done = make(checkout, "figures")
    assert done.returncode == 0, done.stderr
    assert f"papermill: {checkout}/.venv/bin/papermill" in done.stdout
    (arguments,) = re.findall("arguments: (.*)", done.stdout)
    assert arguments.split()[:2] == ["--cores", "all"]
    assert "--configfile" not in arguments


def test_options_reach_snakemake(checkout):
    pretend_installed(checkout, snakemake='for a in "$@"; do echo "<$a>"; done')
    done = make(checkout, "figures", "CONFIG=config/my own.yaml", "CORES=3", "ARGS=--dry-run results/a.txt")
    arguments = re.findall("<(.*)>", done.stdout)
    assert arguments[:4] == ["--dry-run", "results/a.txt", "--cores", "3"]
    assert arguments[-2:] == ["--configfile", "config/my own.yaml"]
    done = make(checkout, "quick")
    assert re.findall("<(.*)>", done.stdout)[-2:] == ["--configfile", "config/smoke.yaml"]


def test_the_report_is_written_into_the_experiments_folder(checkout):
    pretend_installed(checkout, snakemake='echo "snakemake $*"')
    done = make(checkout, "report")
    assert "snakemake all write_report --cores all" in done.stdout
    assert done.stdout.endswith("results/default/report.html\n")
    (checkout / "other.yaml").write_text("# an overlay\nexperiment:   other\n")
    done = make(checkout, "snakemake-report", "CONFIG=other.yaml")
    assert "--configfile other.yaml --report results/other/snakemake-report.html" in done.stdout


@pytest.mark.parametrize("target", ["figures", "quick", "report"])
def test_a_workflow_that_fails_makes_make_fail(checkout, target):
    pretend_installed(checkout, snakemake="exit 1")
    assert make(checkout, target).returncode != 0


@pytest.mark.parametrize(
    ("target", "status", "fails"),
    [
        ("test", 0, False),
        ("test", 1, True),
        ("test", 5, True),
        ("test-slow", 0, False),
        ("test-slow", 1, True),
        ("test-slow", 2, True),
        ("test-slow", 5, False),
    ],
)
def test_the_tests_exit_status_is_makes_own(checkout, target, status, fails):
    # pytest's 5 says that nothing was selected: no fault while there are no slow tests.
    pretend_installed(checkout, python=f"exit {status}")
    assert (make(checkout, target).returncode != 0) == fails


def test_quick_and_slow_tests_are_all_tests(checkout):
    pretend_installed(checkout, python='for a in "$@"; do echo "<$a>"; done')
    quick = re.findall("<(.*)>", make(checkout, "test", "PYTEST_ARGS=-x tests/unit").stdout)
    slow = re.findall("<(.*)>", make(checkout, "test-slow").stdout)
    assert quick[:4] == ["-m", "pytest", "-x", "tests/unit"]
    assert quick[-1] == f"not ({slow[-1]})"
    assert slow[-1] == "slow or cluster or browser"


def test_where_slurm_cannot_be_installed_only_its_own_target_fails(checkout):
    pretend_installed(checkout, python='echo "<$*>"; case "$*" in *install) echo reason >&2; exit 1;; esac')
    own = make(checkout, "test-slurm")
    assert own.returncode != 0
    assert "reason" in own.stderr
    assert "pytest" not in own.stdout
    assert re.search("<-m pytest .*-m slow", make(checkout, "test-slow").stdout)
    (checkout / ".venv" / "bin" / "python").write_text('#!/bin/sh\necho "<$*>"\n')
    both = re.findall("<(.*)>", make(checkout, "test-slurm").stdout)
    assert both == ["tests/slurm/loopback_slurm.py install", "-m pytest -m cluster"]


@pytest.mark.parametrize("version", ["3.10", "3.14", "2.7"])
def test_a_python_that_is_too_old_or_too_new_is_named_with_the_remedy(checkout, tmp_path, version):
    path = python_shim(
        tmp_path / "bin",
        f'case "$1" in --version) echo "Python {version}.0";; -c) exit 1;; *) echo used; exit 9;; esac',
    )
    done = make(checkout, "figures", path=path)
    assert done.returncode != 0
    assert f"Python {version}.0" in done.stderr
    assert "make figures PYTHON=python3.12" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(("version", "fine"), [((3, 10), 0), ((3, 11), 1), ((3, 13), 1), ((3, 14), 0), ((4, 0), 0)])
def test_the_version_check_knows_which_pythons_will_do(version, fine):
    (check,) = re.findall(r"import sys; sys\.exit\((not .*?)\)' \|\|", (ROOT / "Makefile").read_text())
    assert (not eval(check.replace("sys.version_info[:2]", "version"))) == fine


def test_a_python_that_is_not_there_is_named_with_the_remedy(checkout):
    done = make(checkout, "figures", "PYTHON=python3.99")
    assert done.returncode != 0
    assert "there is no python3.99" in done.stderr
    assert "make figures PYTHON=python3.12" in done.stderr


def test_debians_missing_package_is_named(checkout, tmp_path):
    done = make(checkout, "figures", path=python_shim(tmp_path / "bin", NO_VENV))
    assert done.returncode != 0
    assert "apt install python3-venv" in done.stderr
    assert not (checkout / ".venv" / ".installed").exists()


def test_clean_leaves_what_git_has(checkout):
    for name in ("results/default/tables", ".snakemake/metadata", ".venv/bin"):
        (checkout / name).mkdir(parents=True)
    (checkout / "results" / "README.md").write_text("read me")
    assert make(checkout, "clean").returncode == 0
    assert sorted(file.name for file in (checkout / "results").iterdir()) == ["README.md"]
    assert not (checkout / ".snakemake").exists()
    assert (checkout / ".venv" / "bin").exists()


def test_the_makefile_keeps_to_what_old_make_knows():
    text = (ROOT / "Makefile").read_text()
    for newer in ("!=", "::=", "$(file ", ".ONESHELL", ".RECIPEPREFIX", "$(let ", "$(intcmp "):
        assert newer not in text, newer


def test_ci_fails_where_either_half_fails(tmp_path):
    """.ci/run in a folder whose make says what it is asked for."""
    checkout = tmp_path / "checkout"
    (checkout / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", checkout / ".ci" / "run")
    assert os.access(checkout / ".ci" / "run", os.X_OK)
    for failing, asked in (("", "test\ntest-slow\n"), ("test", "test\n"), ("test-slow", "test\ntest-slow\n")):
        (checkout / "make").write_text(f'#!/bin/sh\necho "$1"\n[ "$1" != "{failing}" ]\n')
        (checkout / "make").chmod(0o755)
        done = subprocess.run(
            [checkout / ".ci" / "run"],
            cwd=tmp_path,
            env={"PATH": f"{checkout}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        assert done.stdout == asked
        assert (done.returncode != 0) == bool(failing)
