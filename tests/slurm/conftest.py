"""One cluster on loopback for all tests, and Snakemake run on it through profiles/slurm and the site's own file."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROFILES = ("--profile", str(HERE.parents[1] / "profiles" / "slurm"), "--workflow-profile", str(HERE / "site"))


def load(path: Path):
    """A Python file as a module; the folders of tests are no packages."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


loopback_slurm = load(HERE / "loopback_slurm.py")
checkouts = load(HERE.parent / "workflow" / "conftest.py")
fresh_checkout = checkouts.fresh_checkout
smoke = checkouts.smoke


class Run:
    """A Snakemake on the submitting host, in a session of its own: a signal to it is a signal to it alone."""

    def __init__(self, cluster, folder: Path, *arguments: str) -> None:
        self.cluster = cluster
        self.folder = folder
        self.log = folder / f"controller-{time.monotonic_ns()}.log"
        path = f"{Path(sys.executable).parent}{os.pathsep}{cluster.environment['PATH']}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "snakemake", *PROFILES, *arguments],
                cwd=folder,
                env={**cluster.environment, "PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # What a shell starts in the background ignores Ctrl-C, and so would every child of it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    @property
    def submitted(self) -> list[str]:
        """SLURM's numbers of its jobs."""
        return re.findall(r"submitted with SLURM jobid (\d+)", self.output)

    def queue(self, *states: str) -> list[str]:
        """Numbers of its jobs that are in one of these states."""
        listing = self.cluster.ask("squeue", "--noheader", f"--states={','.join(states)}", "--format=%i")
        return sorted(set(listing.split()) & set(self.submitted), key=int)

    def until(self, true: Callable[[], object], seconds: float = 180) -> None:
        """Wait for a condition; fail where the run ends, or the time does, before it."""
        end = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None, self.output[-6000:]
            assert time.monotonic() < end, f"not within {seconds} s\n{self.output[-4000:]}"
            time.sleep(0.3)

    def finish(self, seconds: float = 800) -> int:
        """The exit status."""
        return self.process.wait(seconds)

    def succeed(self, seconds: float = 800) -> str:
        assert self.finish(seconds) == 0, f"{self.output[-6000:]}\n{self.cluster.logs()[-3000:]}"
        return self.output

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture(scope="session")
def cluster() -> Iterator[object]:
    """The cluster; skips with the reason where none can be started."""
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="needs snakemake-executor-plugin-slurm")
    reason = loopback_slurm.why_not()
    if reason is not None:
        pytest.skip(reason)
    # Not in pytest's own folder: munged refuses a socket that others cannot reach.
    folder = Path(tempfile.mkdtemp(prefix="counterprobe-slurm-"))
    cluster = loopback_slurm.start(folder)
    yield cluster
    loopback_slurm.stop(cluster)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def submit(cluster) -> Iterator[Callable[..., Run]]:
    """Start Snakemake in a folder; what is still running at the end is killed."""
    runs: list[Run] = []

    def start(folder: Path, *arguments: str) -> Run:
        runs.append(Run(cluster, folder, *arguments))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.kill()
