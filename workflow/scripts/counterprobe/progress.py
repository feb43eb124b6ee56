"""What a user sees while the workflow runs: errors of one line, log records, progress bars.

Nothing here can change a number, which is why no code digest follows this module (see `spec.code_digest`):
editing the wording of a message reruns no job. Keep it so, and put nothing here that a result depends on.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

# A bar in a log file is unreadable; one line in this many seconds says as much.
SECONDS_BETWEEN_LINES = 10.0


class UserError(ValueError):
    """Something the user can put right: one line that says what is wrong, where, and what to do.

    `runtime.job` prints it without a traceback; everything else that is raised is a bug of ours and keeps its
    own.
    """


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


def terse(workflow_logger: logging.Logger) -> None:
    """Take out of a workflow's log what comes once or twice a job and says nothing that our own line does
    not.

    Left are the job's line (see `runtime.job`), "3 of 87 steps (3%) done", and every warning and error.
    """
    workflow_logger.addFilter(_says_something)


def _says_something(record: logging.LogRecord) -> bool:
    event = str(getattr(getattr(record, "event", None), "value", ""))
    chatter = event in ("job_started", "job_finished") or record.msg == "Select jobs to execute..."
    return record.levelno > logging.INFO or not chatter
