"""Verdicts on claims: rows of the tables that the experiments wrote, put before the criteria of the ledger.

Nothing is measured here and nothing else is read. A leg selects rows of one table, makes one number with a 95% interval
of them, and holds it against its criterion (`ledger`):

    yes          the whole interval on the side that the claim says (a point, where the statistic has no interval)
    no           the whole interval on the other side; for `inside`, wholly outside the margins
    undecided    anything else, NaN included
    not run      the table or its rows are not there, with the reason

    supported    every deciding leg says yes              contradicted    one says no
    inconclusive anything else                            not run         one was not run

Numbers of a leg, with b the bound next to the estimate e and h = |e − end of the interval next to b|:

    p         2 (1 − Φ(1.96 |e − b| / h)) where e lies on the claimed side, else 1: below .05 exactly where the interval
              clears b. A claim's p is the largest of its legs' (all have to hold); Holm's correction runs over the
              claims of one family.
    power     chance that the interval clears b if the truth lies `margin` beyond it: Φ(1.96 (margin / h − 1)), h half the
              width of the interval; for `inside`, that it fits when the truth is in the middle: 2 Φ(1.96 (w / h − 1)) − 1, w
              half the width of the margins. A claim's is the smallest of its legs': an upper bound for all together.
              Inconclusive with power below .8 is called underpowered. A count has no interval, so neither p nor power.

Rows become one number by `reduce`:

    one          exactly one row is expected
    mean         mean of the estimates, and of the ends of the intervals: as wide as if all rows erred together
    seeds        mean over rows and Student's interval between them (seeds of one rung)
    share        share of rows whose interval lies above `bar`: a number without an interval
    largest, smallest    the extreme row, with its interval

`versus` makes the number a difference from other rows (`times` as much of them), whose intervals are taken as independent,
or holds it against the 95% prediction bound of each group of seeds (`rungs`): mean + t s √(1 + 1/k), the largest of which is
the bound.

Pitfalls: an interval of a difference that was measured on the same texts is too wide here, never too narrow, where the
two move together. p and power come from an interval alone and inherit its width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from counterprobe import designs, ledger, splits, statistics, verdicts
from counterprobe.designs import Design

COLUMNS = {
    "claim": "string",
    "kind": "string",
    "author": "string",
    "says": "string",
    "family": "string",
    "level": "string",
    "verdict": "string",
    "reason": "string",
    "statistic": "string",
    "criterion": "string",
    "estimate": "number",
    "lower": "number",
    "upper": "number",
    "p": "number",
    "p_holm": "number",
    "power": "number",
    "underpowered": "boolean",
    "model": "string",
    "revision": "string",
    "tables": "string",
    "figure": "string",
    "fixed": "string",
    "artefact": "string",
}
LEG_COLUMNS = {
    "claim": "string",
    "leg": "integer",
    "says": "string",
    "decides": "boolean",
    "holds": "string",
    "reason": "string",
    "table": "string",
    "rows": "integer",
    "criterion": "string",
    "estimate": "number",
    "lower": "number",
    "upper": "number",
    "p": "number",
    "power": "number",
    "model": "string",
    "revision": "string",
}
NOT_RUN = "not run"
NAN = float("nan")
Z = float(stats.norm.ppf(0.975))
ENOUGH = 0.8


@dataclass(frozen=True)
class Finding:
    """One leg: its number, what it says, and how sure. `reason` is empty where it was run and has an interval."""

    holds: str
    reason: str = ""
    rows: int = 0
    estimate: float = NAN
    lower: float = NAN
    upper: float = NAN
    p: float = NAN
    power: float = NAN
    model: str = ""
    revision: str = ""


class _NotRun(Exception):
    """Why a leg cannot be answered with these tables."""


def judge(
    claims: Mapping[str, Mapping[str, Any]],
    tables: Mapping[str, pd.DataFrame],
    subject: Mapping[str, Any],
    artefacts: Mapping[str, str],
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(claims, legs): one row a claim with the columns of `COLUMNS`, one a leg with those of `LEG_COLUMNS`.

    tables: by name; one that is missing turns its claims to not run. subject: what `$` names stand for (see
    `subject_of`). artefacts: digest of each table's file.
    """
    rows, leg_rows = [], []
    for name, claim in claims.items():
        legs = [(leg, find(leg, tables, subject)) for leg in claim["legs"]]
        rows.append(_claim_row(name, claim, legs, subject, artefacts))
        for place, (leg, finding) in enumerate(legs):
            leg_rows.append(
                {
                    "claim": name,
                    "leg": place,
                    "says": leg["says"],
                    "decides": leg.get("decides", True),
                    "table": leg["table"],
                    "criterion": criterion(leg),
                    **vars(finding),
                }
            )
    _correct(rows)
    return pd.DataFrame(rows, columns=list(COLUMNS)), pd.DataFrame(leg_rows, columns=list(LEG_COLUMNS))


def subject_of(
    model: str,
    revision: str,
    design: Design,
    published: str,
    protocols: Sequence[str],
    *,
    position: str,
    bos: bool,
    n_folds: int,
    seed: int,
) -> dict[str, Any]:
    """What `$` names of the ledger stand for: the first model of the run on its first design, and targets by their role.

    A role that nothing in the design has is an empty list, and a claim about it is not run.
    """
    # Roles are of features and pairs; with many features there are too many parities to name.
    every = list(designs.targets(design, max_order=2))
    primary = designs.canonical(design, "^".join(design.primary))
    pairs = [name for name in every if name.count("^") == 1]
    return {
        "model": model,
        "revision": revision,
        "design": design.name,
        "published": published,
        "position": position,
        "bos": bos,
        "protocol": splits.primary_protocol(design, protocols, n_folds=n_folds, seed=seed),
        "primary": primary,
        "first": design.primary[0],
        "second": design.primary[1],
        "basic": [name for name in every if "^" not in name],
        "needed": [name for name in design.needed if "^" in name],
        "needless": [name for name in pairs if name not in design.needed],
    }


def find(leg: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], subject: Mapping[str, Any]) -> Finding:
    """What the tables say of one leg."""
    try:
        if leg["table"] not in tables:
            raise _NotRun(f"this run has no table {leg['table']}")
        table = tables[leg["table"]]
        rows = _select(table, leg["where"], subject)
        seen = Finding("undecided", rows=len(rows), model=_only(rows, "model"), revision=_only(rows, "revision"))
        test, of = leg["test"], leg.get("of", ("estimate", "lower", "upper"))
        if "word" in test:
            return _word(rows, test["word"], of, leg, seen)
        if "decided" in test:
            return _decided(rows, leg, seen)
        seen = _reduced(rows, leg, of, seen)
        versus = leg.get("versus")
        bound = None
        if versus is not None:
            other = _select(
                table if "table" not in versus else _known(tables, versus["table"]), versus["where"], subject
            )
            if "by" in versus:
                bound = _prediction_bound(other, versus["by"], of[0])
            else:
                beside = _reduced(other, leg | versus, versus.get("of", of), seen)
                seen = _difference(seen, _scaled(beside, versus.get("times", 1.0)))
        return _tested(seen, test, bound, _margin(leg))
    except _NotRun as reason:
        return Finding(NOT_RUN, str(reason))


def criterion(leg: Mapping[str, Any]) -> str:
    """A leg's criterion in words."""
    (kind, value), *_ = leg["test"].items()
    by = (leg.get("versus") or {}).get("by")
    if kind == "above":
        return "interval above the 95% prediction bound of every rung" if by else f"interval above {value:g}"
    if kind == "inside":
        return f"interval inside {value[0]:g} to {value[1]:g}"
    if kind == "word":
        return f"{value['column']} is {' or '.join(value['holds'])}"
    if kind == "decided":
        return value["as"]
    return {"below": "interval below {:g}", "at_least": "at least {:g}", "at_most": "at most {:g}"}[kind].format(value)


# --- rows ---------------------------------------------------------------------------------------------------


def _known(tables: Mapping[str, pd.DataFrame], name: str) -> pd.DataFrame:
    if name not in tables:
        raise _NotRun(f"this run has no table {name}")
    return tables[name]


def _select(table: pd.DataFrame, where: Mapping[str, Any], subject: Mapping[str, Any]) -> pd.DataFrame:
    kept = table
    last = None
    for column, asked in where.items():
        if column not in table:
            raise _NotRun(f"the table has no column {column}")
        if asked == "$last":
            last = column
            continue
        value = _meant(asked, subject)
        if isinstance(value, Mapping):
            kept = kept[_matches(kept[column], value, subject)]
        elif isinstance(value, list):
            kept = kept[kept[column].isin(value)]
        else:
            kept = kept[kept[column] == value]
    if last is not None and len(kept):
        kept = kept[kept[last] == kept[last].max()]
    if kept.empty:
        asked = ", ".join(f"{column} {_meant(value, subject)}" for column, value in where.items())
        raise _NotRun(f"no row has {asked}")
    return kept


def _matches(values: pd.Series, asked: Mapping[str, Any], subject: Mapping[str, Any]) -> pd.Series:
    ((kind, value),) = asked.items()
    value = _meant(value, subject)
    if kind == "not":
        return ~values.isin(value if isinstance(value, list) else [value])
    if kind == "starts":
        return values.str.startswith(value)
    return values.astype(float) > value


def _meant(asked: Any, subject: Mapping[str, Any]) -> Any:
    if not (isinstance(asked, str) and asked.startswith("$")) or asked == "$last":
        return asked
    value = subject[asked[1:]]
    if value == [] or value == "":
        raise _NotRun(f"this experiment has no {asked[1:]} target" if value == [] else f"no {asked[1:]} design is read")
    return value


def _only(rows: pd.DataFrame, column: str) -> str:
    values = rows[column].unique() if column in rows else ()
    return str(values[0]) if len(values) == 1 else "several" if len(values) else ""


# --- from rows to one number --------------------------------------------------------------------------------


def _reduced(rows: pd.DataFrame, leg: Mapping[str, Any], of: Sequence[str], seen: Finding) -> Finding:
    values = [rows[name].to_numpy(float) if name in rows else np.full(len(rows), np.nan) for name in of]
    estimate, lower, upper = values
    note = "" if "note" not in rows else str(rows["note"].iloc[0])
    how = leg.get("reduce", "one")
    if how == "one" and len(rows) != 1:
        raise _NotRun(f"{len(rows)} rows where the criterion is about one")
    if how == "share":
        return replace(seen, estimate=float(np.mean(lower > leg["bar"])))
    known = ~np.isnan(estimate)
    if not known.any():
        return replace(seen, reason=note or "the number is not defined here")
    if how == "seeds":
        if known.sum() < 2:
            return replace(seen, estimate=float(estimate[known].mean()), reason="one seed has no interval")
        interval = statistics.t_interval(estimate[known], 0.95)
        return replace(
            seen, estimate=float(interval.estimate), lower=float(interval.lower), upper=float(interval.upper)
        )
    if how in ("largest", "smallest"):
        place = int((np.nanargmax if how == "largest" else np.nanargmin)(estimate))
        return replace(seen, estimate=estimate[place], lower=lower[place], upper=upper[place])
    return replace(
        seen,
        **{name: float(part[known].mean()) for name, part in zip(("estimate", "lower", "upper"), values, strict=True)},
    )


def _scaled(one: Finding, times: float) -> Finding:
    return replace(one, estimate=times * one.estimate, lower=times * one.lower, upper=times * one.upper)


def _difference(one: Finding, other: Finding) -> Finding:
    below = np.hypot(one.estimate - one.lower, other.upper - other.estimate)
    above = np.hypot(one.upper - one.estimate, other.estimate - other.lower)
    estimate = one.estimate - other.estimate
    return replace(
        one,
        reason=one.reason or other.reason,
        estimate=estimate,
        lower=estimate - float(below),
        upper=estimate + float(above),
    )


def _prediction_bound(rows: pd.DataFrame, by: Sequence[str], column: str) -> float:
    """The largest 95% upper prediction bound among groups of seeds."""
    bounds = []
    for _, group in rows.groupby(list(by)):
        seeds = group[column].dropna().to_numpy(float)
        if len(seeds) > 1:
            spread = seeds.std(ddof=1) * np.sqrt(1 + 1 / len(seeds))
            bounds.append(seeds.mean() + stats.t.ppf(0.975, len(seeds) - 1) * spread)
    return float(max(bounds, default=NAN))


# --- from a number to an answer -----------------------------------------------------------------------------


def _tested(seen: Finding, test: Mapping[str, Any], bound: float | None, margin: float | None) -> Finding:
    ((kind, value),) = test.items()
    if np.isnan(seen.estimate):
        return seen
    if kind in ("at_least", "at_most"):
        holds = seen.estimate >= value if kind == "at_least" else seen.estimate <= value
        return replace(seen, holds="yes" if holds else "no")
    if np.isnan(seen.lower) or np.isnan(seen.upper):
        return replace(seen, reason=seen.reason or "the number has no interval")
    half = (seen.upper - seen.lower) / 2
    if kind == "inside":
        low, high = value
        holds = low < seen.lower and seen.upper < high
        fails = seen.upper < low or seen.lower > high
        p = max(
            _p(seen.estimate - low, seen.estimate - seen.lower), _p(high - seen.estimate, seen.upper - seen.estimate)
        )
        power = max(0.0, 2 * stats.norm.cdf(Z * ((high - low) / 2 / half - 1)) - 1) if half > 0 else 1.0
    else:
        bar = value if bound is None else bound
        if np.isnan(bar):
            return replace(seen, reason="no kind of randomised weights has two seeds with a number")
        holds, fails = seen.lower > bar, seen.upper < bar
        p = _p(seen.estimate - bar, seen.estimate - seen.lower)
        if kind == "below":
            holds, fails = seen.upper < bar, seen.lower > bar
            p = _p(bar - seen.estimate, seen.upper - seen.estimate)
        power = _power(margin, half)
    return replace(seen, holds="yes" if holds else "no" if fails else "undecided", p=p, power=float(power))


def _p(distance: float, half: float) -> float:
    if distance <= 0:
        return 1.0
    return float(2 * stats.norm.sf(Z * distance / half)) if half > 0 else 0.0


def _margin(leg: Mapping[str, Any]) -> float | None:
    return float(leg["margin"]) if "margin" in leg else None


def _power(margin: float | None, half: float) -> float:
    if margin is None or np.isnan(half):
        return NAN
    return float(stats.norm.cdf(Z * (margin / half - 1))) if half > 0 else 1.0


def _word(
    rows: pd.DataFrame, test: Mapping[str, Any], of: Sequence[str], leg: Mapping[str, Any], seen: Finding
) -> Finding:
    """Every row has to say yes; one that says no contradicts. Shown is the row that decides."""
    words = rows[test["column"]].astype(str)
    yes, no = words.isin(test["holds"]), words.isin(test["fails"])
    shown = rows[no] if no.any() else rows[~yes] if (~yes).any() else rows
    row = shown.iloc[0]
    found = {name: float(row[column]) for name, column in zip(("estimate", "lower", "upper"), of, strict=True)}
    return replace(
        seen,
        **found,
        holds="no" if no.any() else "yes" if yes.all() else "undecided",
        reason=f"{row.get('target', '')} is {row[test['column']]}".strip(),
        p=float(rows[test["p"]].max()) if "p" in test else NAN,
        power=_power(_margin(leg), (found["upper"] - found["lower"]) / 2),
    )


def _decided(rows: pd.DataFrame, leg: Mapping[str, Any], seen: Finding) -> Finding:
    """Rows whose answer another table has already given: yes, no or undecided."""
    test = leg["test"]["decided"]
    holds = rows["holds"].astype(str)
    answer = "no" if (holds == "no").any() else "yes" if (holds == "yes").all() else "undecided"
    rows = rows[holds == answer]
    half = (rows.upper - rows.lower).to_numpy(float) / 2
    p, place = NAN, 0
    if "bar" in test:
        with np.errstate(divide="ignore", invalid="ignore"):
            sure = np.abs(rows.estimate.to_numpy(float) - test["bar"]) / half
        place = 0 if np.isnan(sure).all() else int(np.nanargmin(sure))
        if not np.isnan(sure).all():
            p = float(2 * stats.norm.sf(Z * sure[place])) if answer == "yes" else 1.0
    row = rows.iloc[place]
    widest = float(np.nanmax(half)) if not np.isnan(half).all() else NAN
    return replace(
        seen,
        holds=answer,
        reason=f"{len(rows)} of {len(holds)} legs say {answer}; first: {row.leg}",
        estimate=float(row.estimate),
        lower=float(row.lower),
        upper=float(row.upper),
        p=p,
        power=_power(_margin(leg), widest),
    )


# --- from legs to a claim -----------------------------------------------------------------------------------


def _claim_row(
    name: str,
    claim: Mapping[str, Any],
    legs: Sequence[tuple[Mapping[str, Any], Finding]],
    subject: Mapping[str, Any],
    artefacts: Mapping[str, str],
) -> dict[str, Any]:
    deciding = [(leg, finding) for leg, finding in legs if leg.get("decides", True)]
    answers = [finding.holds for _, finding in deciding]
    row = {
        "claim": name,
        "kind": claim["kind"],
        "author": claim["author"],
        "says": claim["claim"],
        "family": claim["family"],
        "level": claim["level"],
        "figure": claim.get("figure", "").format(**{key: subject[key] for key in ("model", "design")}),
        "tables": ", ".join(sorted({leg["table"] for leg, _ in legs})),
        "fixed": ledger.current(claim),
        "artefact": ", ".join(
            artefacts[table][:12] for table in sorted({leg["table"] for leg, _ in legs}) if table in artefacts
        ),
        "p_holm": NAN,
        "underpowered": False,
    }
    if not deciding or NOT_RUN in answers:
        missing = [finding.reason for _, finding in deciding if finding.holds == NOT_RUN]
        why = claim.get("why", "")
        reason = f"{why} ({missing[0]})" if missing and why else missing[0] if missing else why
        shown = deciding[0][0] if deciding else None
        return row | {
            "verdict": NOT_RUN,
            "reason": reason,
            "statistic": shown["says"] if shown else "",
            "criterion": criterion(shown) if shown else "",
            **{key: NAN for key in ("estimate", "lower", "upper", "p", "power")},
            "model": "",
            "revision": "",
        }
    verdict = "contradicted" if "no" in answers else "supported" if set(answers) == {"yes"} else "inconclusive"
    shown, finding = _shown(deciding, verdict)
    ps = [found.p for _, found in deciding if not np.isnan(found.p)]
    powers = [found.power for _, found in deciding if not np.isnan(found.power)]
    power = min(powers, default=NAN)
    return row | {
        "verdict": verdict,
        "reason": finding.reason,
        "statistic": shown["says"],
        "criterion": criterion(shown),
        "estimate": finding.estimate,
        "lower": finding.lower,
        "upper": finding.upper,
        "p": max(ps, default=NAN),
        "power": power,
        "underpowered": verdict == "inconclusive" and power < ENOUGH,
        "model": finding.model,
        "revision": finding.revision,
    }


def _shown(deciding: Sequence[tuple[Mapping[str, Any], Finding]], verdict: str) -> tuple[Mapping[str, Any], Finding]:
    """The leg that a claim's row shows: the one that decides it, or the least certain of those that agree."""
    wanted = {"contradicted": "no", "inconclusive": "undecided", "supported": "yes"}[verdict]
    agreeing = [pair for pair in deciding if pair[1].holds == wanted]
    return max(agreeing, key=lambda pair: -1.0 if np.isnan(pair[1].p) else pair[1].p)


def _correct(rows: list[dict[str, Any]]) -> None:
    """Holm's correction within each family, over the claims that have a p."""
    for family in _families(rows):
        corrected = verdicts.holm([row["p"] for row in family])
        for row, p in zip(family, corrected, strict=True):
            row["p_holm"] = float(p)


def _families(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    tested = [row for row in rows if row["kind"] == "claim" and not np.isnan(row["p"])]
    for name in sorted({row["family"] for row in tested}):
        yield [row for row in tested if row["family"] == name]
