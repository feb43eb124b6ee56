"""One run of the smoke experiment in a copy of the tracked files, shared by every test of the workflow."""

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

# A run on a loaded machine may take this long; a hang takes longer (seconds; below pytest's own --timeout).
PATIENCE = 1700


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
            timeout=PATIENCE,
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
def smoke(fresh_checkout: Callable[[], Checkout], tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which the smoke experiment has run to the end: once for all workers, each of which has its copy."""
    checkout = fresh_checkout()
    folder = tmp_path_factory.getbasetemp()
    finished = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "smoke"
    with FileLock(f"{finished}.lock"):
        if not finished.exists():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            checkout.run("--configfile", "config/smoke.yaml")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
            # Tests share the cores: wall time would say little.
            (checkout.root / "processor_seconds").write_text(str(spent))
            shutil.copytree(checkout.root, finished, symlinks=True)
            return checkout
    shutil.rmtree(checkout.root)
    shutil.copytree(finished, checkout.root, symlinks=True)
    return checkout
