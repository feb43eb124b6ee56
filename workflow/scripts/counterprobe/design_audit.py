"""What a design gives away before any model has read it.

The texts stand in for the dumbest possible representation: one-hot tokens, plus one column per factor.
Nothing in it is more than additive, so whatever it tells a linear probe about an XOR under the CONFIGURED
split is a property of the texts and the split, and would be found in any model. Everything is read off the
texts: which tokens realise a factor, how many there are, which of them training and test share.

    balance             every cell of the factors equally often in every item tokens              every token
    equally often with a target True and False, in every part of every fold; a country
                        that is right more often than wrong is what a non-deranged wrong country looks like
    additive            accuracy of ridge regression on the additive representation, .5 where nothing leaks.
    Under a
                        row split, an incomplete item leaves out a twin of opposite label, and accuracies
                        fall to .2-.4 (the published layout; facts of
                        https://github.com/saprmarks/geometry-of-truth, branch rax)
    look_up             the same for a representation in which each token that realises a factor has an
    interaction of
                        its own and nothing is shared: 1 where training and test share the tokens, .5 where
                        they do not
    carriers            how many tokens realise a factor in its rarer class: below 8 it is "token identity"
    held_out            whether the split holds out any factor of a target; if not, it is not testable there
    minimal_detectable  smallest ‖δ‖ that the sign-flip test of `statistics` finds nine times in ten, in
    standard
                        deviations within a cell, for this design's items, carriers and several widths d

Verdicts: ok; information; flagged (say it beside the number); baseline (tokens alone read the target:
compare with that, not with .5); not testable; expected leak (under a protocol that is configured for its
leak); refused. A design written in blocks promises balance, so there any departure is refused; of a user's
table only what no table needs to have: a leak made by the split, and complete items beside incomplete ones.

Pitfalls: a factor that no token realises (match) is held out with the items. Words are runs of letters and
digits; what a factor does to spelling or order is not seen.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from counterprobe import checksum, designs, splits
from counterprobe.designs import Design
from counterprobe.progress import UserError, logger
from counterprobe.splits import Fold

COLUMNS = ("design", "protocol", "target", "check", "value", "level", "verdict", "message")
ENOUGH_CARRIERS = 8
PUBLISHED = "published"
# Dimensions of small, middling and large models, for the smallest effect that could be found.
WIDTHS = (128, 768, 4096)
# One published split tests on a fifth of the rows; four of them see most items.
PUBLISHED_SPLITS = 4
# Ridge on one-hot tokens: small against a token's share of the texts, so that single items can be memorised.
PENALTY = 1e-3
# Below this, and within three and a half standard errors over items, a departure from .5 is not called a
# leak.
TOLERANCE, STANDARD_ERRORS = 0.02, 3.5


@dataclass(frozen=True)
class AuditReport:
    """findings: one row per thing looked at, with the columns of `COLUMNS`. refused: messages of what is
    refused."""

    design: str
    findings: pd.DataFrame
    refused: tuple[str, ...]

    def to_parquet(self) -> bytes:
        """The findings as a Parquet file; equal findings give equal bytes."""
        return _parquet(self.findings)

    def refuse(self) -> None:
        """Raise UserError where anything was refused: what, and how many more."""
        if self.refused:
            more = f" (and {len(self.refused) - 1} more in the log)" if len(self.refused) > 1 else ""
            raise UserError(f"design '{self.design}' is refused: {self.refused[0]}{more}")


@dataclass(frozen=True)
class Realisers:
    """Tokens that occur with one class of a factor only, fewest that cover the class; empty where none
    covers it.

    A class without tokens beside one that has them is realised by their absence (plain beside "not").
    """

    true: tuple[str, ...]
    false: tuple[str, ...]

    @property
    def found(self) -> bool:
        return bool(self.true or self.false)

    @property
    def fewest(self) -> int:
        """Carriers in the rarer class; the absence of a token is one carrier."""
        return min(max(len(self.true), 1), max(len(self.false), 1))


def audit(
    design: Design,
    protocols: Sequence[str] = ("carriers", "items"),
    *,
    widths: Sequence[int] = WIDTHS,
    n_folds: int = 4,
    seed: int = 0,
    expected_leaks: Sequence[str] = (PUBLISHED,),
) -> AuditReport:
    """Everything above for one design under its configured protocols. Logs what is not ok; raises nothing
    for it.

    widths: dimensions that the minimal detectable effect is computed for; no model is known yet, and one whose
    activations fill few dimensions is nearer to the smallest. expected_leaks: protocols that were configured to show
    their leak; it is reported, not refused. UserError where a protocol is unknown or cannot be dealt at all (fewer items than
    folds).
    """
    words, present = _one_hot(design.texts)
    realised = realisers(design, words, present)
    promised = bool((design.blocks >= 0).all())
    rows = [_balance(design, promised), *_carriers(design, realised)]
    for protocol in protocols:
        try:
            by_target = _folds(design, protocol, n_folds, seed)
        except splits.NotTestable as reason:
            rows.append(_row(protocol, "all", "held_out", np.nan, np.nan, "not testable", str(reason)))
            continue
        leak = "expected leak" if protocol in expected_leaks else "refused"
        if protocol != PUBLISHED:
            rows += _tokens(design, protocol, words, present, by_target, realised, promised)
            rows += _held_out(design, protocol, words, present, by_target, realised)
            rows += _look_ups(design, protocol, words, present, by_target, realised)
            rows += _detectable(design, protocol, realised, widths)
        rows += _additive(design, protocol, present, by_target, realised, promised, leak)
    findings = pd.DataFrame([{"design": design.name, **row} for row in rows], columns=list(COLUMNS))
    _log(findings, designs.canonical(design, "^".join(design.primary)))
    refused = findings.loc[findings["verdict"] == "refused", "message"]
    return AuditReport(design.name, findings, tuple(refused))


def gather(paths: Iterable[str | Path]) -> bytes:
    """The findings of several audits in one Parquet file, by design; within a design in the order of the
    audit."""
    parts = [checksum.read_parquet(path).to_pandas() for path in paths]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))
    return _parquet(table.sort_values("design", kind="stable", ignore_index=True))


def realisers(
    design: Design, words: Sequence[str] | None = None, present: Bool[np.ndarray, "n V"] | None = None
) -> dict[str, Realisers]:
    """Which tokens realise each factor, found in the texts alone (a greedy cover of each class)."""
    if words is None or present is None:
        words, present = _one_hot(design.texts)
    counts = present.sum(axis=0)
    found = {}
    for factor, values in design.factors.items():
        with_true = present[values].sum(axis=0)
        true = _cover(present[values], np.flatnonzero(with_true == counts))
        false = _cover(present[~values], np.flatnonzero(with_true == 0))
        found[factor] = Realisers(tuple(words[i] for i in true), tuple(words[i] for i in false))
    return found


def _balance(design: Design, promised: bool) -> dict[str, object]:
    n_cells = 2 ** len(design.factors)
    counts = np.bincount(
        design.items * n_cells + designs.cells(design), minlength=len(design.item_names) * n_cells
    ).reshape(-1, n_cells)
    odd = np.flatnonzero((counts != counts[:, :1]).any(axis=1))
    share = 1 - len(odd) / len(counts)
    row = {"protocol": "none", "target": "all", "check": "balance", "value": share, "level": 1.0}
    if not len(odd):
        message = f"every one of {len(counts)} items has every cell {counts[0, 0]} times"
        return {**row, "verdict": "ok", "message": message}
    item = odd[0]
    cell = int(np.flatnonzero(counts[item] != counts[item].max())[0])
    spelled = ", ".join(f"{factor}={bool(cell >> i & 1)}" for i, factor in enumerate(design.factors))
    message = (
        f"{len(odd)} of {len(counts)} items lack balance: '{design.item_names[item]}' has {spelled} "
        f"{counts[item, cell]} times and another cell {counts[item].max()} times"
    )
    whole = (counts > 0).all(axis=1)
    if promised or (whole.any() and not whole.all() and not design.reweighted):
        return {**row, "verdict": "refused", "message": f"{message}; complete or remove the items"}
    if not whole.all():
        message += "; contrasts are estimated with item fixed effects, and a row split leaks"
    return {**row, "verdict": "flagged", "message": message}


def _carriers(design: Design, realised: Mapping[str, Realisers]) -> Iterator[dict[str, object]]:
    for factor, tokens in realised.items():
        if not tokens.found:
            message = f"no token realises {factor}: it is held out with the items"
            yield _row("none", factor, "carriers", np.nan, float(ENOUGH_CARRIERS), "ok", message)
            continue
        few = tokens.fewest < ENOUGH_CARRIERS
        counts = f"{max(len(tokens.true), 1)} and {max(len(tokens.false), 1)} tokens"
        message = f"{factor} is realised by {counts} ({', '.join([*tokens.true[:3], *tokens.false[:3]])})"
        if few:
            message += f": fewer than {ENOUGH_CARRIERS} a class, so reading it may be reading a token's identity"
        verdict = "flagged" if few else "ok"
        yield _row("none", factor, "carriers", float(tokens.fewest), float(ENOUGH_CARRIERS), verdict, message)


def _tokens(
    design: Design,
    protocol: str,
    words: Sequence[str],
    present: Bool[np.ndarray, "n V"],
    by_target: Mapping[str, Sequence[Fold]],
    realised: Mapping[str, Realisers],
    promised: bool,
) -> Iterator[dict[str, object]]:
    one_hot = present.astype(np.float64)
    for target, folds in by_target.items():
        if target in realised and realised[target].found:
            continue
        signs = np.where(designs.parity(design, target), 1.0, -1.0)
        worst, most, where = 0.0, 0.0, ""
        for k, fold in enumerate(folds):
            for part, rows in (("training", fold.train), ("test", fold.test)):
                # Against the part's own prior: a rare label is rare for every token alike.
                excess = np.abs(one_hot[rows].T @ (signs[rows] - signs[rows].mean()))
                # In standard errors, or frequent words would hide the country that a table gets wrong.
                size = excess / np.sqrt(np.maximum(one_hot[rows].sum(axis=0), 1))
                token = int(size.argmax())
                worst = max(worst, float(excess.max()))
                if size[token] > most + 1e-9:
                    most = float(size[token])
                    has = rows[present[rows, token]]
                    positive = int((signs[has] > 0).sum())
                    where = (
                        f"'{words[token]}' stands {positive} times with {_spoken(design, target)} True and "
                        f"{len(has) - positive} times with it False in the {part} texts of fold {k}"
                    )
        row = {"protocol": protocol, "target": target, "check": "tokens", "value": worst, "level": 0.0}
        if worst < 1e-6:
            message = f"every token is as often with {target} True as False in every part of every fold"
            yield {**row, "verdict": "ok", "message": message}
        elif promised:
            yield {**row, "verdict": "refused", "message": f"{where}; balance it within the folds"}
        else:
            yield {**row, "verdict": "flagged", "message": where}


def _held_out(
    design: Design,
    protocol: str,
    words: Sequence[str],
    present: Bool[np.ndarray, "n V"],
    by_target: Mapping[str, Sequence[Fold]],
    realised: Mapping[str, Realisers],
) -> Iterator[dict[str, object]]:
    seen = {}
    for factor, tokens in realised.items():
        columns = np.array([word in {*tokens.true, *tokens.false} for word in words])
        shares = []
        for fold in by_target[factor]:
            known = columns & present[fold.train].any(axis=0)
            # A text without any of the tokens has the absence of them, which every fold shares.
            absent = ~present[fold.test][:, columns].any(axis=1)
            shares.append((present[fold.test][:, known].any(axis=1) | absent).mean())
        seen[factor] = float(np.mean(shares)) if tokens.found else 0.0
    enough = {f for f, tokens in realised.items() if not tokens.found or tokens.fewest >= ENOUGH_CARRIERS}
    for target in by_target:
        factors = target.split("^")
        out = [factor for factor in factors if factor in enough and seen[factor] == 0]
        share = min(seen[factor] for factor in factors)
        row = {"protocol": protocol, "target": target, "check": "held_out", "value": share, "level": 0.0}
        if out:
            yield {**row, "verdict": "ok", "message": f"{', '.join(out)} of {target}: held out"}
            continue
        why = ", ".join(
            f"{factor} ({realised[factor].fewest} carriers a class, known in {seen[factor]:.0%} of tests)"
            for factor in factors
        )
        message = f"{_spoken(design, target)}: no factor of it is held out: {why}; it may be read off tokens"
        yield {**row, "verdict": "not testable" if protocol == "carriers" else "flagged", "message": message}


def _look_ups(
    design: Design,
    protocol: str,
    words: Sequence[str],
    present: Bool[np.ndarray, "n V"],
    by_target: Mapping[str, Sequence[Fold]],
    realised: Mapping[str, Realisers],
) -> Iterator[dict[str, object]]:
    for target, folds in by_target.items():
        factors = target.split("^")
        for factor in factors if len(factors) > 1 else ():
            tokens = {*realised[factor].true, *realised[factor].false}
            if len(tokens) < 2:
                continue
            rest = designs.parity(design, "^".join(f for f in factors if f != factor))
            columns = np.array([word in tokens for word in words])
            own = present[:, columns] * np.where(rest, 1.0, -1.0)[:, None]
            value = float(np.mean(_accuracies(own, designs.parity(design, target)[:, None], folds)))
            row = {"protocol": protocol, "target": target, "check": "look_up", "value": value, "level": 0.5}
            if abs(value - 0.5) <= TOLERANCE:
                message = f"looking up each token of {factor} does not read {target}"
                yield {**row, "verdict": "ok", "message": message}
            else:
                message = (
                    f"a look-up of each token of {factor}, with nothing shared between them, reads "
                    f"{_spoken(design, target)} at {value:.2f}: this protocol cannot tell it from an XOR"
                )
                yield {**row, "verdict": "flagged", "message": message}


def _additive(
    design: Design,
    protocol: str,
    present: Bool[np.ndarray, "n V"],
    by_target: Mapping[str, Sequence[Fold]],
    realised: Mapping[str, Realisers],
    promised: bool,
    leak: str,
) -> Iterator[dict[str, object]]:
    columns = {factor: np.where(values, 1.0, -1.0) for factor, values in design.factors.items()}
    asked = [target for target in by_target if target not in realised or not realised[target].found]
    # A factor's own column would tell its class; to the parities of several factors no column does.
    alone = [[target] for target in asked if target in columns]
    several = [target for target in asked if target not in columns]
    batches = alone + ([[target] for target in several] if protocol == PUBLISHED else [several])
    right: dict[str, np.ndarray] = {}
    for batch in filter(None, batches):
        features = np.column_stack([present, *(columns[factor] for factor in columns if factor not in batch)])
        labels = np.stack([designs.parity(design, target) for target in batch], axis=1)
        right |= zip(batch, _accuracies(features, labels, by_target[batch[0]]).T, strict=True)
    for target in asked:
        tested = np.concatenate([fold.test for fold in by_target[target]])
        items, counts = np.unique(design.items[tested], return_inverse=True, return_counts=True)[1:]
        by_item = np.bincount(items, weights=right[target]) / counts
        value, error = float(right[target].mean()), float(by_item.std(ddof=1) / np.sqrt(len(by_item)))
        labels = designs.parity(design, target)
        row = {"protocol": protocol, "target": target, "check": "additive", "value": value, "level": 0.5}
        away = abs(value - 0.5) > (1e-6 if promised else max(TOLERANCE, STANDARD_ERRORS * error))
        said = f"an additive representation reads {_spoken(design, target)} at {value:.2f}"
        if not away:
            yield {**row, "verdict": "ok", "message": said}
        elif protocol == PUBLISHED:
            message = f"{said} though it has no such information: rows of one item are on both sides of the split"
            yield {**row, "verdict": leak, "message": message}
        elif promised or not _token_of(present, labels):
            yield {
                **row,
                "verdict": leak,
                "message": f"{said}: the split leaks; balance it or use another protocol",
            }
        else:
            message = f"{said}, from tokens that go with it more often than not: compare with this, not with .5"
            yield {**row, "verdict": "baseline", "message": message}


def _detectable(
    design: Design, protocol: str, realised: Mapping[str, Realisers], widths: Sequence[int]
) -> Iterator[dict[str, object]]:
    from counterprobe import statistics

    n_items = len(design.item_names)
    for target in designs.targets(design):
        factors = target.split("^")
        units = [len(np.unique(design.couples))]
        if protocol == "carriers":
            units += [
                len(np.unique(design.carriers[f])) if f in design.carriers else realised[f].fewest
                for f in factors
                if realised[f].found and realised[f].fewest >= ENOUGH_CARRIERS
            ]
        norms = [
            statistics.minimal_detectable(n_items, len(design.texts) // n_items, len(factors), width, min(units))
            for width in widths
        ]
        sizes = ", ".join(f"{norm:.2f} at d = {width}" for norm, width in zip(norms, widths, strict=True))
        message = (
            f"{target}: ‖δ‖ in within-cell standard deviations that is found nine times in ten: {sizes} "
            f"({n_items} items in {min(units)} units)"
        )
        yield _row(protocol, target, "minimal_detectable", norms[0], np.nan, "information", message)


def _log(findings: pd.DataFrame, primary: str) -> None:
    """One line for each kind of finding that is not ok, about the primary target where that is among them."""
    log = logger("audit")
    told = findings[findings["verdict"] != "ok"]
    for (protocol, check, verdict), kind in told.groupby(["protocol", "check", "verdict"], sort=False):
        shown = kind[kind["target"] == primary] if (kind["target"] == primary).any() else kind
        more = f" (and {len(kind) - 1} more like it)" if len(kind) > 1 else ""
        level = log.info if verdict in ("information", "expected leak") else log.warning
        level("%s: %s, %s: %s%s", verdict, protocol, check, shown["message"].iloc[0], more)


def _folds(design: Design, protocol: str, n_folds: int, seed: int) -> dict[str, Sequence[Fold]]:
    """Folds of every target; those of the published protocol are several random splits, other ones for each
    target."""
    names = list(designs.targets(design))
    if protocol == PUBLISHED:
        return {
            name: [splits.published_split(design, i, seed + k) for k in range(PUBLISHED_SPLITS)]
            for i, name in enumerate(names)
        }
    made = splits.folds(design, protocol, 0, n_folds=n_folds, seed=seed)
    return dict.fromkeys(names, made)


def _accuracies(
    features: Float[np.ndarray, "n k"], labels: Bool[np.ndarray, "n T"], folds: Sequence[Fold]
) -> Float[np.ndarray, "tested T"]:
    """Balanced accuracy of ridge regression, as one value per tested text and target; ties are worth 1/2.

    The threshold lies midway between the training classes' mean scores. Weights of a balanced additive
    problem are exactly 0 and everything ties: what is left of them is rounding, hence the tolerance.
    """
    parts = []
    for fold in folds:
        train, test = labels[fold.train], labels[fold.test]
        x = features[fold.train] - features[fold.train].mean(axis=0)
        y = np.where(train, 1.0, -1.0)
        gram = x.T @ x / len(x) + PENALTY * np.eye(x.shape[1])
        w = np.linalg.solve(gram, x.T @ (y - y.mean(axis=0)) / len(x))
        trained = features[fold.train] @ w
        middle = ((trained * train).sum(axis=0) / train.sum(axis=0)) / 2
        middle += ((trained * ~train).sum(axis=0) / (~train).sum(axis=0)) / 2
        margin = (features[fold.test] @ w - middle) * np.where(test, 1.0, -1.0)
        right = np.where(np.abs(margin) < 1e-7, 0.5, margin > 0)
        # Each class counts for one half, whatever the prior.
        share = np.where(test, test.mean(axis=0), 1 - test.mean(axis=0))
        parts.append(0.5 + (right - 0.5) / (2 * share))
    return np.concatenate(parts)


def _token_of(present: Bool[np.ndarray, "n V"], labels: Bool[np.ndarray, " n"]) -> bool:
    """Whether any token goes more often with one label than the prior says, over all texts."""
    signs = np.where(labels, 1.0, -1.0)
    return bool(np.abs(present.T.astype(np.float64) @ (signs - signs.mean())).max() > 1e-6)


def _one_hot(texts: Sequence[str]) -> tuple[list[str], Bool[np.ndarray, "n V"]]:
    """Words and punctuation marks in order of first occurrence, less those that every text has."""
    split = [re.findall(r"\w+|[^\w\s]", text) for text in texts]
    index: dict[str, int] = {}
    for tokens in split:
        for token in tokens:
            index.setdefault(token, len(index))
    present = np.zeros((len(texts), len(index)), bool)
    for i, tokens in enumerate(split):
        present[i, [index[token] for token in tokens]] = True
    varies = ~present.all(axis=0)
    return [token for token, keep in zip(index, varies, strict=True) if keep], present[:, varies]


def _cover(present: Bool[np.ndarray, "n V"], candidates: Int[np.ndarray, " c"]) -> list[int]:
    """Fewest candidates (greedily) of which every text has one; none where that cannot be."""
    left, chosen = np.ones(len(present), bool), []
    while left.any():
        gains = present[left][:, candidates].sum(axis=0)
        if not len(gains) or not gains.max():
            return []
        chosen.append(int(candidates[gains.argmax()]))
        left &= ~present[:, chosen[-1]]
    return chosen


def _spoken(design: Design, target: str) -> str:
    return f"{target} ({design.aliases[target]})" if target in design.aliases else target


def _row(
    protocol: str, target: str, check: str, value: float, level: float, verdict: str, message: str
) -> dict[str, object]:
    return {
        "protocol": protocol,
        "target": target,
        "check": check,
        "value": float(value),
        "level": float(level),
        "verdict": verdict,
        "message": message,
    }


def _parquet(findings: pd.DataFrame) -> bytes:
    import pyarrow as pa

    kinds = {"value": pa.float64(), "level": pa.float64()}
    schema = pa.schema([pa.field(name, kinds.get(name, pa.string())) for name in COLUMNS])
    table = pa.Table.from_pandas(findings[list(COLUMNS)], schema=schema, preserve_index=False)
    return checksum.parquet(table.replace_schema_metadata(None))
