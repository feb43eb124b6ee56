"""The ledger of claims: what was claimed, where, and the criterion that was fixed before anything was measured.

workflow/resources/claims.yaml is the ledger, workflow/schemas/claims.schema.yaml describes every key of it. A claim has
legs; a leg says which table, which rows, which statistic and which criterion, in a closed vocabulary, so that a new
experiment joins by rows of the ledger alone.

    fixed, revised    the digest of what decides a claim (kind, family, legs) as it was first written, and of every later
                      form, each with the day and the reason. A criterion that differs from the last of them does not load.

Pitfall: a digest stops nobody who rewrites it as well; it makes a change of criterion a line of its own in the history.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from counterprobe import spec
from counterprobe.progress import UserError

LEDGER = Path(__file__).resolve().parents[2] / "resources" / "claims.yaml"
SCHEMA = Path(__file__).resolve().parents[2] / "schemas" / "claims.schema.yaml"
DECIDES = ("kind", "family", "legs")
DIGITS = 12


def load(path: str | Path = LEDGER) -> dict[str, dict[str, Any]]:
    """The claims by id, checked. UserError names the claim, the key and what is wrong with it."""
    return about(path)["claims"]


def about(path: str | Path = LEDGER) -> dict[str, Any]:
    """The whole ledger, checked: `claims`, and `tables` with the configuration and the scripts that each comes from."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    path = Path(path)
    try:
        ledger = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    problem = best_match(Draft202012Validator(schema).iter_errors(ledger))
    if problem is not None:
        where = ".".join(str(key) for key in problem.absolute_path) or "the file"
        raise UserError(f"{path}, {where}: {problem.message}")
    for name, claim in ledger["claims"].items():
        if claim["legs"]:
            _check_digest(path, name, claim)
    return ledger


def current(claim: Mapping[str, Any]) -> str:
    """The digest under which the criterion stands; empty for a claim that has none yet."""
    return claim["revised"][-1]["digest"] if "revised" in claim else claim.get("fixed", "")


def digest(claim: Mapping[str, Any]) -> str:
    """What `fixed` holds: the digest of everything on which the verdict depends."""
    return spec.digest(spec.canonical({key: claim.get(key) for key in DECIDES}))[:DIGITS]


def _check_digest(path: Path, name: str, claim: Mapping[str, Any]) -> None:
    known, found = current(claim), digest(claim)
    if found != known:
        raise UserError(
            f"{path}, {name}: its criterion is not the one that was fixed ({known}); "
            f"add to `revised`: {{date: 'YYYY-MM-DD', why: REASON, digest: {found}}}"
        )
