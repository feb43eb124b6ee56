"""Fixtures for all tests: the checkout, shared models and data beside it, a skip where a card is missing."""

import functools
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# A loaded machine must not fail a property test, nor two runs of the suite differ.
settings.register_profile("counterprobe", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("counterprobe")

# Tests share the cores (pytest -n): one thread each, before anything imports torch. Jobs of the workflow set their own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files whose tests take many minutes together, the longest first: a worker that came to one of them last would be alone.
LONGEST = ("test_nothing_lost.py", "test_cluster.py", "test_default.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not has_card():
        pytest.skip("needs a CUDA card")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Faults tried and survived, by kind, from whatever process a test ran in."""
    outcomes: dict[str, list[str]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for kind in (value for name, value in report.user_properties if name == "fault"):
                outcomes.setdefault(kind, []).append(outcome)
    if outcomes:
        terminalreporter.section("faults")
        for kind, found in sorted(outcomes.items()):
            terminalreporter.write_line(f"{kind:<24} {len(found):>3} tried {found.count('passed'):>3} survived")


@functools.cache
def has_card() -> bool:
    """Asked only when a test needs one: importing torch takes seconds."""
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Small real models and published data, beside the checkout where there are any."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the checkout")
    return folder


@pytest.fixture(scope="session")
def tracked_files() -> list[Path]:
    """Every file that git has, or would take on `git add --all`."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    files = (ROOT / name for name in listing.stdout.decode().split("\0") if name)
    return [file for file in files if file.is_file()]
