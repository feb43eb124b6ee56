"""Whatever is killed, and whenever: one plain rerun finishes, and every table is the undisturbed run's to the byte.

A moment is a number of finished steps and a delay after it, both drawn from a seed: the same on a slow machine as on a
quick one. The disk is a small tmpfs that holds the whole checkout (results, logs and Snakemake's own records) and is
filled at the moment; where nothing can be mounted, a limit on the size of files (EFBIG) stands in for it.
"""

import contextlib
import dataclasses
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from counterprobe import language_model, statements, tokenization

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")]

# The spine: a job of every stage from texts to a figure, in half a minute.
TABLES = ("audit", "behaviour", "health", "probes")
TARGETS = (
    *(f"results/kill/tables/{table}.parquet" for table in TABLES),
    "results/kill/figures/little/factorial_least/ladder.png",
)
KILL = ("--configfile", "config/kill.yaml", "--", *TARGETS)
UNLOCK = ("--configfile", "config/kill.yaml", "--unlock")
STEPS = 13
FAULTS = ("job", "controller", "controller and jobs", "disk")
MOMENTS = 20
MEGABYTE = 2**20


def moments() -> list[tuple[str, int, float]]:
    """(fault, steps finished, seconds after that): every fault is spread over the whole run."""
    draw = random.Random(0)
    spread = [index * STEPS // MOMENTS for index in range(MOMENTS)]
    draw.shuffle(spread)
    return [(FAULTS[index % len(FAULTS)], steps, draw.uniform(0, 1.2)) for index, steps in enumerate(spread)]


@dataclasses.dataclass
class Place:
    """A checkout with the model in it, its undisturbed tables, and the disk that it lies on."""

    checkout: object
    disk: str
    tables: dict[str, bytes]

    @property
    def results(self) -> Path:
        return self.checkout.root / "results" / "kill"

    def read_tables(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.results / "tables").glob("*.parquet"))}


@pytest.fixture(scope="module")
def place(fresh_checkout, tmp_path_factory) -> Iterator[Place]:
    made = fresh_checkout()
    mount = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", f"size={64 * MEGABYTE}", "counterprobe", str(mount)]
    mounted = shutil.which("mount") and subprocess.run(command, capture_output=True).returncode == 0
    try:
        if mounted:
            made = type(made)(Path(shutil.copytree(made.root, mount / "checkout", symlinks=True)))
        make_model(made.root)
        started = time.monotonic()
        made.run(*KILL)
        undisturbed = Place(made, "tmpfs" if mounted else "RLIMIT_FSIZE", {})
        undisturbed.tables = undisturbed.read_tables()
        assert set(undisturbed.tables) == {f"{table}.parquet" for table in TABLES}
        print(f"undisturbed: {time.monotonic() - started:.1f} s")
        yield undisturbed
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(mount)], check=True)


def make_model(root: Path) -> None:
    """About 100 kB of random weights, where config/kill.yaml looks for them."""
    config = yaml.safe_load((root / "config/kill.yaml").read_text())
    world = statements.world(config["corpora"]["least"], root / "workflow/resources")
    tokenizer = tokenization.word_level_tokenizer(statements.vocabulary(world))
    shape = language_model.Architecture(layers=2, width=32, heads=2)
    model = language_model.build(shape, tokenizer.get_vocab_size(), seed=0)
    language_model.save_revision(model, tokenizer, root, 0).rename(root / config["models"]["little"]["path"])


@pytest.mark.parametrize(("fault", "steps", "delay"), moments())
def test_after_a_fault_one_plain_rerun_gives_the_same_tables(place, record_property, fault, steps, delay):
    shutil.rmtree(place.results)
    shutil.rmtree(place.checkout.root / ".snakemake")
    record_property("fault", f"{fault} ({place.disk})" if fault == "disk" else fault)
    struck, said = disturb(place, fault, steps, delay)
    if fault.startswith("controller"):
        place.checkout.run(*UNLOCK)
    place.checkout.run(*KILL)
    assert place.read_tables() == place.tables
    assert struck, said[-2000:]


def disturb(place: Place, fault: str, steps: int, delay: float) -> tuple[bool, str]:
    """Run until a moment, strike, and wait for the end. Returns whether the workflow noticed, and what it said."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    log = place.checkout.root.parent / "said.log"
    with open(log, "w+") as said:
        controller = subprocess.Popen(
            [sys.executable, "-m", "snakemake", "--cores", "2", *KILL],
            cwd=place.checkout.root,
            env={**os.environ, "PATH": path},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        tree = psutil.Process(controller.pid)
        while controller.poll() is None and finished(log) < steps:
            time.sleep(0.02)
        time.sleep(delay)
        if fault == "job":
            struck = kill_a_job(tree)
        elif fault == "disk":
            struck = controller.poll() is None
            with full_disk(place, tree):
                struck &= controller.wait() != 0
        else:
            struck = controller.poll() is None
            jobs = tree.children(recursive=True) if struck else []
            controller.kill()
            for process in jobs if fault == "controller and jobs" else []:
                kill(process)
        controller.wait()
    return struck, log.read_text()


def finished(log: Path) -> int:
    return len(re.findall(r"^\d+ of \d+ steps", log.read_text(), flags=re.MULTILINE))


def kill_a_job(controller: psutil.Process) -> bool:
    """Kill the first script or notebook that is seen."""
    while controller.is_running() and controller.status() != psutil.STATUS_ZOMBIE:
        for process in controller.children(recursive=True):
            try:
                started = any(f"{os.sep}.snakemake{os.sep}scripts{os.sep}" in part for part in process.cmdline())
                if started and "bash" not in process.name():
                    kill(process)
                    return True
            except psutil.Error:
                continue
        time.sleep(0.01)
    return False


def kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


@contextlib.contextmanager
def full_disk(place: Place, controller: psutil.Process) -> Iterator[None]:
    """While it lasts, the disk of the checkout has no room; where it cannot be filled, no file grows beyond a page."""
    if place.disk != "tmpfs":
        for process in [controller, *controller.children(recursive=True)]:
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
        yield
        return
    filler = place.checkout.root.parent / "filler"
    try:
        with open(filler, "wb", buffering=0) as file:
            size = MEGABYTE
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2
        yield
    finally:
        filler.unlink()
