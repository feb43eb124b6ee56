"""Which revisions of a model an experiment reads: a list, or a schedule that is known without asking anybody.

    pythia    the 154 checkpoints of every Pythia model (Biderman et al. 2023, arXiv 2304.01373, section 2.1)
    log2      0, 1, 2, 4, ... and the last step; for Pythia the 20 of its checkpoints nearest to that

A directory is one revision, called main. Stdlib only: the Snakefile plans with it.
"""

from collections.abc import Mapping
from typing import Any

from counterprobe.progress import UserError

PYTHIA_STEPS = (0, *(2**power for power in range(10)), *range(1000, 143_001, 1000))
PYTHIA_LOG2_STEPS = (0, *(2**power for power in range(10)), *(1000 * 2**power for power in range(8)), 143_000)


def powers_of_two(last: int) -> tuple[int, ...]:
    """0, 1, 2, 4, ... and `last` itself."""
    return (0, *(2**power for power in range(last.bit_length()) if 2**power < last), last)


def revisions(model: Mapping[str, Any]) -> tuple[str, ...]:
    """The revisions of one entry of `models:`, earliest first. Raises UserError for an unknown schedule."""
    if model["source"] == "directory":
        return ("main",)
    chosen = model["revisions"]
    if not isinstance(chosen, str):
        return tuple(chosen)
    if chosen == "pythia":
        steps = PYTHIA_STEPS
    elif chosen == "log2":
        steps = powers_of_two(model["training"]["steps"]) if model["source"] == "train" else PYTHIA_LOG2_STEPS
    else:
        raise UserError(f"config, models.*.revisions: no schedule is called '{chosen}'; known: log2, pythia, or a list")
    return tuple(f"step{step}" for step in steps)


def step_of(revision: str) -> int:
    """The training step a revision is named for; -1 where its name does not say."""
    digits = revision.removeprefix("step")
    return int(digits) if digits.isdigit() and digits != revision else -1
