"""The frame around every script: log, threads, device, provenance, and outputs that are whole or absent.

    with runtime.job(snakemake) as job:
        grid = probes.train_grid(activations.open_store(job.input.activations), job.spec, device=job.device)
        job.write_table(grid.scores)

Threads: weights and singular values differ in their last bits between one thread and two, so torch and BLAS
get the number that the rule DECLARES in `resources: declared_threads=2` (1 where it declares none), never
`snakemake.threads`, which `--cores 1` scales down. Tables are then byte-identical for any `--cores` on one
machine and device. Device: a rule that asks for a card (`resources: gpu=1`) runs on it, under a lease that no
other job of this machine holds, because Snakemake counts cards and never says which. Any other rule runs on
the CPU. Network: off for huggingface_hub, except in `job(snakemake, online=True)`. Packages: in a
conda environment of Snakemake's, from there alone (`isolation`). Errors: a UserError
becomes one line and exit status 1; anything else leaves its traceback in the log.

Pitfall: call `job` before any tensor work, and import torch (through the library) before calling it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import resource
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from counterprobe import isolation, manifest, progress
from counterprobe.progress import UserError

if TYPE_CHECKING:
    import pandas as pd
    import torch

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    # Fast tokenizers start a thread on every core of their own accord.
    "RAYON_NUM_THREADS",
)
# Packages that can change a number; a manifest records those that the job has imported.
RECORDED = (
    "numpy",
    "pandas",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "transformer_lens",
    "transformers",
)


class Job:
    """What a script needs from Snakemake, with writers whose files appear whole or not at all."""

    def __init__(self, snakemake: Any, log: Path | None) -> None:
        self.input = snakemake.input
        self.output = snakemake.output
        self.wildcards = snakemake.wildcards
        self.rule: str = snakemake.rule
        self.spec: dict[str, Any] = json.loads(snakemake.params.spec)
        self.code: str = snakemake.params.code
        self.threads = int(_resource(snakemake, "declared_threads", 1))
        self.log = log
        self._cards = int(_resource(snakemake, "gpu", 0))
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()

    @property
    def device(self) -> str:
        """`cuda` for a rule that asks for a card, else `cpu`. Raises UserError where torch cannot use it."""
        if not self._cards:
            return "cpu"
        import torch

        configure_torch(self.threads)
        if torch.version.cuda is None:
            raise UserError(
                f"device: cuda, but torch {torch.__version__} is a CPU build; install the CUDA build "
                "(see the README) or set device: cpu"
            )
        if not torch.cuda.is_available():
            raise UserError("device: cuda, but torch finds no usable card here; run nvidia-smi, or set device: cpu")
        return "cuda"

    def write_table(self, table: pd.DataFrame, name: str | None = None) -> None:
        """Write a result table to the output `name`, or to the only Parquet output."""
        from counterprobe import tables

        with self.writing(name, ".parquet") as path:
            tables.write(table, path)

    def write_tensors(self, tensors: Mapping[str, torch.Tensor], name: str | None = None) -> None:
        """Write tensors to the output `name`, or to the only safetensors output."""
        from counterprobe import checksum

        self.write_bytes(checksum.safetensors(tensors), name, ".safetensors")

    def write_json(self, value: Any, name: str | None = None) -> None:
        """Write indented, sorted JSON to the output `name`, or to the only JSON output."""
        self.write_bytes((json.dumps(value, indent=2, sort_keys=True) + "\n").encode(), name, ".json")

    def write_bytes(self, data: bytes, name: str | None = None, suffix: str = "") -> None:
        """Write bytes to the output `name`, or to the only output that ends in `suffix`."""
        with self.writing(name, suffix) as path:
            path.write_bytes(data)

    @contextlib.contextmanager
    def writing(self, name: str | None = None, suffix: str = "") -> Iterator[Path]:
        """A temporary path that becomes the output when the block ends well, for what takes a path."""
        with manifest.atomic(self._target(name, suffix)) as temporary:
            yield temporary

    def manifest(self, folder: str | Path, content: Mapping[str, Any] | None = None) -> None:
        """Write `folder`/manifest.json, the last act of a job whose output is a folder.

        `content` is what the script knows; spec, code, digests of the inputs, size and hash of every file in
        the folder, versions, device and threads are added. `content["files"]` stands where it is given.
        """
        self.write_manifest(Path(folder) / manifest.NAME, {"files": manifest.describe_files(folder), **(content or {})})

    def write_manifest(self, path: str | Path, content: Mapping[str, Any]) -> None:
        """`manifest` for an artefact whose files lie elsewhere, such as in a cache."""
        provenance = {
            "rule": self.rule,
            "wildcards": dict(self.wildcards.items()),
            "spec": self.spec,
            "code": self.code,
            "inputs": self._input_digests(),
            "versions": versions(),
            "device": "cuda" if self._cards else "cpu",
            "threads": self.threads,
        }
        manifest.write(path, {**provenance, **content}, self._run())

    def _run(self) -> dict[str, Any]:
        # Linux counts kibibytes, macOS bytes.
        scale = 2**20 if sys.platform == "darwin" else 2**10
        run = {
            "host": socket.gethostname(),
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._clock, 3),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**20),
        }
        torch = sys.modules.get("torch")
        if self._cards and torch is not None:
            run["card"] = torch.cuda.get_device_name()
            run["peak_card_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20)
        return run

    def _input_digests(self) -> dict[str, str | list[str]]:
        """By name, not by path: equal inputs in another folder are equal inputs."""
        return {
            name: _digest(value) if isinstance(value, str) else [_digest(path) for path in value]
            for name, value in self.input.items()
        }

    def _target(self, name: str | None, suffix: str) -> Path:
        if name is not None:
            return Path(getattr(self.output, name))
        fitting = [str(path) for path in self.output if str(path).endswith(suffix)]
        if len(fitting) != 1:
            raise LookupError(
                f"rule {self.rule} has {len(fitting)} outputs ending in {suffix!r}; name the one you mean"
            )
        return Path(fitting[0])


@contextlib.contextmanager
def job(snakemake: Any, *, online: bool = False) -> Iterator[Job]:
    """Run a script's work: set up log, threads, device and network; turn errors into one line and exit status
    1.

    Everything that is printed or logged goes to the rule's log file; the terminal gets one line for the whole
    job.
    """
    log = _log_path(snakemake)
    terminal = sys.stderr
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(log, "a", encoding="utf-8", buffering=1))
            _alone(file, _title(snakemake))
            file.truncate(0)
            stack.enter_context(_everything_into(file))
        try:
            task = Job(snakemake, log)
            stack.enter_context(_threads(task.threads))
            stack.enter_context(_network(online))
            stack.enter_context(isolation.isolated())
            if task._cards:
                stack.enter_context(GpuLease(task._cards))
            if "torch" in sys.modules:
                configure_torch(task.threads)
            yield task
        except Exception as error:
            line = _one_line(error, log)
            print(line if isinstance(error, UserError) else traceback.format_exc(), file=sys.stderr, flush=True)
            if log is not None:
                print(f"{_title(snakemake)}: {line}", file=terminal, flush=True)
            raise SystemExit(1) from None
    print(f"{_title(snakemake)}: {time.monotonic() - started:.1f} s", file=terminal, flush=True)


class GpuLease(contextlib.AbstractContextManager["GpuLease"]):
    """Cards of this machine that no other job has, shown to torch through CUDA_VISIBLE_DEVICES.

    One lock file a card, held while the job lives; the system frees it even if the job is killed. Inside a
    SLURM job the scheduler has already picked the cards, so none is leased. Must be entered before CUDA is
    initialised.
    """

    def __init__(self, count: int, *, folder: Path | None = None, poll_seconds: float = 1.0) -> None:
        self.count = count
        self.folder = folder or Path(tempfile.gettempdir()) / f"counterprobe-cards-{os.getuid()}"
        self.poll_seconds = poll_seconds
        self.cards: tuple[str, ...] = ()
        self._locks: list[IO[str]] = []
        self._before: str | None = None

    def __enter__(self) -> GpuLease:
        if "SLURM_JOB_ID" in os.environ:
            return self
        known = visible_cards()
        if len(known) < self.count:
            raise UserError(
                f"device: cuda asks for {self.count} card(s), but {len(known)} can be seen; set device: cpu"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        log = progress.logger("runtime")
        waiting = False
        while True:
            self.cards = self._lock(known)
            if len(self.cards) == self.count:
                break
            self._release()
            if not waiting:
                log.info("waiting for a free card among %s", ", ".join(known))
                waiting = True
            time.sleep(self.poll_seconds)
        self._before = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(self.cards)
        return self

    def __exit__(self, *_: object) -> None:
        if self.cards:
            if self._before is None:
                os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            else:
                os.environ["CUDA_VISIBLE_DEVICES"] = self._before
        self._release()

    def _lock(self, known: list[str]) -> tuple[str, ...]:
        import fcntl

        held = []
        for card in known:
            if len(held) == self.count:
                break
            file = open(self.folder / f"{card.replace('/', '_')}.lock", "w")  # noqa: SIM115 (open while held)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                continue
            self._locks.append(file)
            held.append(card)
        return tuple(held)

    def _release(self) -> None:
        for file in self._locks:
            file.close()
        self._locks = []
        self.cards = ()


def visible_cards() -> list[str]:
    """CUDA's names of the cards that this process may use, without initialising CUDA."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [card.strip() for card in allowed.split(",") if card.strip()]
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return listing.stdout.split()


def configure_torch(threads: int) -> None:
    """Deterministic algorithms, no TF32, and exactly `threads` threads."""
    import torch

    # cuBLAS reads this when CUDA starts; without it deterministic algorithms refuse matrix products.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    # `use_deterministic_algorithms` is this and an import of the compiler, a second in every job that compiles nothing.
    torch.set_deterministic_debug_mode("error")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def versions() -> dict[str, str]:
    """Python and the imported packages that can change a number."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in RECORDED:
        module = {"scikit-learn": "sklearn"}.get(package, package)
        if module in sys.modules:
            with contextlib.suppress(PackageNotFoundError):
                found[package] = version(package)
    return found


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = {variable: os.environ.get(variable) for variable in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))
    try:
        # The variables are for libraries that start later; those that have started need to be told.
        from threadpoolctl import threadpool_limits

        limits: Any = threadpool_limits(count)
    except ImportError:
        limits = contextlib.nullcontext()
    try:
        with limits:
            yield
    finally:
        _restore(before)


@contextlib.contextmanager
def _network(online: bool) -> Iterator[None]:
    if online:
        yield
        return
    before = {variable: os.environ.get(variable) for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    os.environ.update(dict.fromkeys(before, "1"))
    # huggingface_hub reads the variable once, when it is imported.
    constants = sys.modules.get("huggingface_hub.constants")
    was = getattr(constants, "HF_HUB_OFFLINE", None)
    if constants is not None:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        _restore(before)
        if constants is not None:
            constants.HF_HUB_OFFLINE = was


def _restore(variables: Mapping[str, str | None]) -> None:
    for variable, value in variables.items():
        if value is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = value


def _alone(log: IO[str], title: str) -> None:
    """Hold the job's log for its length: a job outlives a workflow that is killed, and may still be writing when the
    next run starts it again."""
    import fcntl

    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{title}: waiting for the same job of a run that was killed", file=sys.stderr, flush=True)
        fcntl.flock(log, fcntl.LOCK_EX)
    except OSError:
        # A file system without locks: what is written is whole or absent all the same.
        return


@contextlib.contextmanager
def _everything_into(file: IO[str]) -> Iterator[None]:
    """Log records of ours from INFO, of others from WARNING, Python warnings and whatever is printed."""
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    root, ours = logging.getLogger(), logging.getLogger("counterprobe")
    before = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file), warnings.catch_warnings():
            yield
    finally:
        logging.captureWarnings(False)
        ours.setLevel(before)
        root.removeHandler(handler)


def _one_line(error: Exception, log: Path | None) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in manifest.FULL:
        what = f" for {error.filename}" if error.filename else ""
        return f"no space left on the disk{what}; free some and run again"
    if type(error).__name__ == "OutOfMemoryError":
        return "the card's memory is too small; lower activations.token_budget"
    first = (str(error).splitlines() or [""])[0]
    where = f"; the traceback is in {log}" if log is not None else ""
    return f"{type(error).__name__}: {first}{where}"


def _digest(path: str) -> str:
    """A manifest counts with its content, so that another evening's equal run has an equal digest."""
    return manifest.digest(path) if Path(path).name == manifest.NAME else manifest.sha256_file(path)


def _title(snakemake: Any) -> str:
    """`train_probes embedded step64 trained factorial`."""
    return " ".join([snakemake.rule, *(str(value) for _, value in snakemake.wildcards.items())])


def _log_path(snakemake: Any) -> Path | None:
    """The rule's text log; a notebook's log is the executed notebook itself."""
    return next((Path(str(path)) for path in snakemake.log if not str(path).endswith(".ipynb")), None)


def _resource(snakemake: Any, name: str, default: int) -> int:
    return getattr(snakemake.resources, name, default)
