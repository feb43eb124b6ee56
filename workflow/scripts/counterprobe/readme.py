"""The table of verdicts in README.md: a rendering of docs/verdicts.csv, which is a copy of one run's claims.

    spec    digest of the run's whole configuration          code    digest of all scripts and library modules

so that anyone sees which configuration and which code the printed verdicts come from, and `behind` says when either has
moved on. The text between the two marks belongs to `make readme`; everything else in README.md is left as it is.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from counterprobe import spec
from counterprobe.progress import UserError

START, END = "<!-- verdicts: written by make readme -->", "<!-- end of verdicts -->"
COLUMNS = (
    "claim",
    "kind",
    "author",
    "says",
    "verdict",
    "underpowered",
    "estimate",
    "lower",
    "upper",
    "p_holm",
    "power",
    "statistic",
    "criterion",
    "fixed",
    "model",
    "revision",
    "reason",
)
SCRIPTS = Path(__file__).resolve().parents[1]
DIGITS = 12


def verdicts(claims: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    """docs/verdicts.csv of a run, six digits a number."""
    sink = io.StringIO()
    written = csv.DictWriter(sink, (*COLUMNS, "experiment", "spec", "code"), lineterminator="\n")
    written.writeheader()
    about = {"experiment": config["experiment"], "spec": spec_digest(config), "code": code_digest()}
    for row in claims:
        written.writerow({name: _plain(row[name]) for name in COLUMNS} | about)
    return sink.getvalue()


def spec_digest(config: Mapping[str, Any]) -> str:
    """Of the whole configuration."""
    return spec.digest(spec.canonical(config))[:DIGITS]


def code_digest() -> str:
    """Of all scripts and library modules, by name."""
    files = sorted(SCRIPTS.rglob("*.py"))
    return spec.digest(
        spec.canonical({path.relative_to(SCRIPTS).as_posix(): spec.digest(path.read_bytes()) for path in files})
    )[:DIGITS]


def rendered(readme: str, table: str) -> str:
    """README.md with the table of verdicts put in. UserError where the marks are not there."""
    if readme.count(START) != 1 or readme.count(END) != 1:
        raise UserError(f"README.md: needs the lines {START!r} and {END!r} once each, for the table between them")
    before, rest = readme.split(START)
    after = rest.split(END)[1]
    return f"{before}{START}\n{markdown(table)}\n{END}{after}"


def markdown(table: str) -> str:
    """docs/verdicts.csv as the README shows it."""
    rows = list(csv.DictReader(io.StringIO(table)))
    claimed = [row for row in rows if row["kind"] in ("claim", "optional")]
    count = {verdict: sum(row["verdict"] == verdict for row in claimed) for verdict in (row["verdict"] for row in rows)}
    said = ", ".join(f"{number} {verdict}" for verdict, number in sorted(count.items()) if number)
    weak = sum(row["underpowered"] == "True" for row in claimed)
    lines = [
        f"Of {len(claimed)} claims: {said}{f' ({weak} underpowered)' if weak else ''}; sanity checks are not counted. "
        f"Experiment `{rows[0]['experiment']}`, configuration `{rows[0]['spec']}`, code `{rows[0]['code']}`.",
        "",
        "<details><summary>All of them</summary>",
        "",
        "| | claim | verdict | estimate | power |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        weak = " (underpowered)" if row["underpowered"] == "True" else ""
        kind = "" if row["kind"] == "claim" else f" *({row['kind']})*"
        number = row["estimate"] and f"{row['estimate']} [{row['lower']}, {row['upper']}]" * bool(row["lower"])
        number = number or row["estimate"]
        lines.append(
            f"| {row['claim']} | {row['says']} ({row['author']}){kind} | {row['verdict']}{weak} | {number} | {row['power']} |"
        )
    return "\n".join([*lines, "", "</details>"])


def behind(table: str, config: Mapping[str, Any]) -> str:
    """What of docs/verdicts.csv is older than this code and configuration; empty where nothing, or it is of another run."""
    rows = list(csv.DictReader(io.StringIO(table)))
    if not rows or rows[0]["experiment"] != config["experiment"]:
        return ""
    old = [
        name
        for name, now in (("configuration", spec_digest(config)), ("code", code_digest()))
        if rows[0]["spec" if name == "configuration" else "code"] != now
    ]
    return f"The README's verdicts come from another {' and another '.join(old)}; make readme." if old else ""


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    return value
