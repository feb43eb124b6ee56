"""What a user sees while the workflow runs: errors of one line, log records, progress bars.

Nothing here can change a number, which is why no code digest follows this module (see `spec.code_digest`):
editing the wording of a message reruns no job. Keep it so, and put nothing here that a result depends on.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")

# A bar in a log file is unreadable; one line in this many seconds says as much.
SECONDS_BETWEEN_LINES = 10.0

LINES_OF_A_LOG = 20
# How Snakemake words the end of a script or notebook; a shell in between adds 128 to a signal's number.
EXIT_STATUS = re.compile(
    r"Command '.*' (returned non-zero exit status (?P<status>\d+)|died with <Signals\.\w+: (?P<signal>\d+)>)", re.DOTALL
)
LOOK_ABOVE = "Exiting because a job execution failed."
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class UserError(ValueError):
    """Something the user can put right: one line that says what is wrong, where, and what to do.

    `runtime.job` prints it without a traceback; everything else that is raised is a bug of ours and keeps its
    own.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'negated'?`, or nothing where no known word is near."""
    by_case = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_case, n=1, cutoff=0.6)
    return f"; did you mean '{by_case[close[0]]}'?" if close else ""


def logger(name: str) -> logging.Logger:
    """The logger of a stage. Without `runtime.job` it is silent below WARNING, as Python's default is."""
    return logging.getLogger(f"counterprobe.{name}")


def bar(iterable: Iterable[Item], total: int | None = None, label: str = "") -> Iterator[Item]:
    """Yield every item and show how far the loop is: a bar on a terminal, else a log line now and then."""
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(iterable, total=total, desc=label, leave=False)
        return
    log = logger("progress")
    last = time.monotonic()
    for done, item in enumerate(iterable, start=1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            log.info("%s %d%s", label or "done", done, f" of {total}" if total else "")


def terse(workflow_logger: logging.Logger) -> Failures:
    """Take out of a workflow's log what comes once or twice a job and says nothing that our own line does
    not.

    Left are the job's line (see `runtime.job`), "3 of 87 steps (3%) done", and every warning and error. Snakemake's
    paragraphs about a failed job are kept for the end: the result's `report` says in one place what they say, and more.
    """
    failures = Failures()
    workflow_logger.addFilter(failures.passes)
    return failures


class Failures:
    """Jobs that failed, as the records of a workflow's log tell of them."""

    def __init__(self) -> None:
        self._jobs: dict[int, tuple[str, tuple[str, ...], int | None]] = {}
        self._statuses: dict[int | None, int] = {}

    def passes(self, record: logging.LogRecord) -> bool:
        """Whether a record has to be seen; as a filter of a logger."""
        event = str(getattr(getattr(record, "event", None), "value", ""))
        message = str(record.msg)
        if event == "error" and (status := EXIT_STATUS.search(message)):
            # The record that names the job comes next, from the same thread.
            self._statuses[record.thread] = int(status["status"] or 128 + int(status["signal"]))
            return False
        if event == "job_error":
            self._jobs[record.jobid] = (record.rule_name, tuple(record.log), self._statuses.pop(record.thread, None))
            return False
        if event == "job_finished":
            # A job that was tried again, and came to its end.
            self._jobs.pop(getattr(record, "job_id", None), None)
        if message.startswith(LOOK_ABOVE):
            return False
        chatter = event in ("job_started", "job_finished") or message == "Select jobs to execute..."
        return record.levelno > logging.INFO or not chatter

    def report(self) -> str:
        """What failed, where its log is, and how that ends; empty where the workflow failed for another reason."""
        return "\n".join(line for job in self._jobs.values() for line in _failure(*job))


def _failure(rule: str, logs: tuple[str, ...], status: int | None) -> Iterator[str]:
    killed = status is not None and status > 128
    how = f"was killed (signal {status - 128}); signal 9 is often a lack of memory" if killed else "failed"
    yield f"{rule} {how}"
    for log in logs:
        try:
            text = Path(log).read_text(encoding="utf-8", errors="replace")
        except OSError:
            yield f"  log: {log} (not written)"
            continue
        yield f"  log: {log}"
        # Where the job ran in this terminal (its status is known), its own last line or papermill's traceback is
        # there already.
        here = status == 1
        if log.endswith(".ipynb"):
            traceback = _notebook_traceback(text)
            lines = traceback[-1:] if here else traceback
        else:
            lines = [] if here and "Traceback" not in text else text.rstrip().splitlines()
        yield from (f"    {line}" for line in lines[-LINES_OF_A_LOG:])


def _notebook_traceback(text: str) -> list[str]:
    """The traceback that an executed notebook holds, without colours; nothing where no cell failed."""
    try:
        outputs = [output for cell in json.loads(text)["cells"] for output in cell.get("outputs", ())]
    except (ValueError, KeyError):
        return []
    errors = [output["traceback"] for output in outputs if output.get("output_type") == "error"]
    return COLOURS.sub("", "\n".join(errors[-1])).splitlines() if errors else []
