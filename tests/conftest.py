"""Fixtures for all tests: the checkout, copies of it to run in, shared models and data, a skip where a card is missing."""

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# A loaded machine must not fail a property test, nor two runs of the suite differ.
settings.register_profile("counterprobe", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("counterprobe")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not has_card():
        pytest.skip("needs a CUDA card")


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


@dataclass(frozen=True)
class Checkout:
    """A copy of the repository in which Snakemake may do as it likes."""

    root: Path

    def snakemake(self, *arguments: str, cores: int = 2, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Snakemake as a user would; the output holds both streams."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", str(cores), *arguments],
            cwd=self.root,
            env={**os.environ, "PATH": path, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=800,
        )

    def run(self, *arguments: str, cores: int = 2, **environment: str) -> str:
        """`snakemake`, which has to succeed."""
        done = self.snakemake(*arguments, cores=cores, **environment)
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    def triggered(self, *arguments: str) -> set[str]:
        """Rules that a dry run would run again because what they depend on has changed, not because of their inputs."""
        planned = self.run("--dry-run", *arguments)
        jobs = re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", planned, flags=re.MULTILINE)
        reasons = {rule: re.search(r"reason: (.*)", body) for rule, body in jobs}
        return {rule for rule, reason in reasons.items() if reason and "Params have changed" in reason[1]}

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()


@pytest.fixture(scope="session")
def fresh_checkout(
    tmp_path_factory: pytest.TempPathFactory, root: Path, tracked_files: list[Path]
) -> Callable[[], Checkout]:
    """Make a copy of what git tracks, with no results in it. `../shared` is reachable from it where it exists."""

    def make() -> Checkout:
        folder = tmp_path_factory.mktemp("workplace") / "checkout"
        for file in tracked_files:
            target = folder / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
        shared = root.parent / "shared"
        if shared.is_dir():
            (folder.parent / "shared").symlink_to(shared)
        return Checkout(folder)

    return make


@pytest.fixture(scope="session")
def smoke(fresh_checkout: Callable[[], Checkout]) -> Checkout:
    """A checkout in which the smoke experiment has run to the end."""
    checkout = fresh_checkout()
    checkout.run("--configfile", "config/smoke.yaml")
    return checkout
