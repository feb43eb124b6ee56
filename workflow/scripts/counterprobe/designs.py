"""A design: labelled texts with what crosses with what, and which tokens realise it.

Every text has m boolean factors. A target is a Walsh parity of them,

    target_S(text) = XOR of factor_i(text) for i in S,      S a non-empty subset of the factors,

so there are 2^m - 1 targets; over a balanced design the ±1 versions of all of them are orthogonal (the
columns of a Hadamard matrix). A parity is written as its factors in design order joined by "^"
(`speaker^negated`); some have names people use (`truth` for `negated^match`), kept as aliases. No parity is
more basic than another by algebra: match, negated and truth are closed under XOR, and which of the three is
"the XOR" is a choice of basis (Marks 2024, https://www.lesswrong.com/posts/hjJXCn9GsskysDceS). Factors are
the basis the author of the texts chose.

Besides its factors a text has an item (the city it is about: the unit that has to stay together), a couple
(items that exchange their wrong countries: stays together wherever that exchange has to be exact), a stratum
(topic), carriers (the tokens that realise a factor) and, where folds were designed into the texts, a block.

Pitfalls: rows of one item are near-copies of each other, so a split by row tests on what it trained on, and
in an incomplete layout with the opposite label. A factor realised by two words is a factor of two words,
whatever its name.
"""

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from counterprobe import checksum, manifest
from counterprobe.progress import UserError, nearest

# Every parity of the features is a target, and every combination a cell: 1,023 and 1,024 of ten.
MOST_FEATURES = 10
BOOLEANS = {"0": False, "1": True, "false": False, "true": True, "False": False, "True": True}


@dataclass(frozen=True)
class ReadOut:
    """What a causal language model says about a target, as the next token after a text.

    P(positive[i]) against P(negative[i]) after prefixes[i]; positive[i] is right when the target is True.
    Answers keep their leading space, so that prefix + answer is running text. `target` is a canonical parity.
    """

    target: str
    prefixes: tuple[str, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Design:
    """Labelled texts; every array has one entry a text, in the order of `texts`.

    items, strata and couples index names or stand for themselves; blocks are -1 where the texts were not
    written in blocks. Of `carriers`, a unit is what can change its class without changing anything else: for
    generated texts the PAIR (female name j, male name j), for csv designs one value of the carrier column.
    Only factors with declared carriers are in there; what realises `match` is the item itself, and a factor
    realised by one word has no entry. `rows` and `files` number the rows of the files a row-random split
    draws from. `marks` are positions of characters: the token that holds the character is read. `readouts`
    has canonical parities as keys. `priors` are declared shares of True of rare targets. `reweighted`: incomplete items
    may stand beside complete ones, and contrasts weigh cells equally all the same. Raises ValueError where the shapes
    disagree.
    """

    name: str
    texts: tuple[str, ...]
    items: np.ndarray
    item_names: tuple[str, ...]
    couples: np.ndarray
    strata: np.ndarray
    stratum_names: tuple[str, ...]
    factors: dict[str, np.ndarray]
    carriers: dict[str, np.ndarray]
    carrier_counts: dict[str, int]
    blocks: np.ndarray
    rows: np.ndarray
    files: np.ndarray
    marks: dict[str, np.ndarray]
    primary: tuple[str, str]
    needed: tuple[str, ...]
    aliases: dict[str, str]
    readouts: dict[str, ReadOut]
    priors: dict[str, float] = field(default_factory=dict)
    reweighted: bool = False

    def __post_init__(self) -> None:
        arrays = {label: getattr(self, label) for label in ("items", "couples", "strata", "blocks", "rows", "files")}
        arrays |= self.factors | self.carriers | self.marks
        for label, array in arrays.items():
            if array.shape != (len(self.texts),):
                raise ValueError(f"design '{self.name}': {label} has shape {array.shape} for {len(self.texts)} texts")
        for target, readout in self.readouts.items():
            if not len(readout.prefixes) == len(readout.positive) == len(readout.negative) == len(self.texts):
                raise ValueError(f"design '{self.name}': the read-out of {target} is not as long as the texts")


def canonical(design: Design, name: str) -> str:
    """The parity `name` means, written in design order: `match^negated` and `truth` are both `negated^match`.

    Aliases may stand inside a parity; what occurs twice cancels, as it does in XOR. Raises UserError for
    unknown names (with the nearest known one) and where everything cancels.
    """
    meanings = {alias: parity_name for parity_name, alias in design.aliases.items()}
    odd: set[str] = set()
    for part in (part.strip() for part in name.split("^")):
        for factor in meanings.get(part, part).split("^"):
            if factor not in design.factors:
                known = [*design.factors, *meanings]
                raise UserError(
                    f"design '{design.name}': '{name}' names no feature: there is no '{part}'"
                    f"{nearest(part, known)} (features are {', '.join(known)})"
                )
            odd ^= {factor}
    if not odd:
        raise UserError(f"design '{design.name}': '{name}' is constant: every feature in it cancels; name another")
    return "^".join(factor for factor in design.factors if factor in odd)


def parity(design: Design, name: str) -> Bool[np.ndarray, "n"]:
    """Labels of one target, by canonical name, any order of factors, or alias. UserError as `canonical`."""
    return np.logical_xor.reduce([design.factors[factor] for factor in canonical(design, name).split("^")])


def targets(design: Design, max_order: int | None = None) -> dict[str, Bool[np.ndarray, "n"]]:
    """All parities of up to `max_order` factors (default: all of them), by size and then in design order."""
    names = tuple(design.factors)
    order = len(names) if max_order is None else min(max_order, len(names))
    return {
        "^".join(subset): np.logical_xor.reduce([design.factors[factor] for factor in subset])
        for size in range(1, order + 1)
        for subset in itertools.combinations(names, size)
    }


def closed_under_xor(design: Design, target: str) -> str:
    """What figures and tables must say of a parity that is itself a named feature: "closed under XOR: negated ^ match =
    truth". Empty for a basic factor and for a parity without a name.

    Of the features in such an equation each is the XOR of the others: to call one of them an arbitrary XOR is a choice
    of names.
    """
    name = canonical(design, target)
    if "^" not in name or name not in design.aliases:
        return ""
    return f"closed under XOR: {name.replace('^', ' ^ ')} = {design.aliases[name]}"


def cells(design: Design) -> Int[np.ndarray, "n"]:
    """Which of the 2^m combinations of factors each text is: bit i is factor i."""
    return _cells(design.factors)


def check_balanced(design: Design) -> None:
    """Raise UserError, naming the first cells that fail, unless every item has every cell equally often."""
    problem = _imbalance(design.items, design.item_names, design.factors)
    if problem:
        raise UserError(f"design '{design.name}': {problem}; add the missing texts or remove the item")


def without(design: Design, texts: Iterable[int]) -> Design:
    """The design less every couple of items that one of `texts` belongs to.

    Whole couples, since what is left must be as balanced as before. Raises UserError where nothing is left.
    """
    struck = np.unique(design.couples[np.fromiter(texts, dtype=np.int64)])
    kept = ~np.isin(design.couples, struck)
    if not kept.any():
        raise UserError(
            f"design '{design.name}': no item is left without the texts that cannot be used; use other texts"
        )
    pick = np.flatnonzero(kept)
    used, items = np.unique(design.items[pick], return_inverse=True)
    _, couples = np.unique(design.couples[pick], return_inverse=True)

    def picked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {label: array[pick] for label, array in arrays.items()}

    def chosen(strings: Sequence[str]) -> tuple[str, ...]:
        return tuple(strings[i] for i in pick)

    return replace(
        design,
        texts=chosen(design.texts),
        items=items.astype(np.int64),
        item_names=tuple(design.item_names[i] for i in used),
        couples=couples.astype(np.int64),
        factors=picked(design.factors),
        carriers=picked(design.carriers),
        marks=picked(design.marks),
        **picked({label: getattr(design, label) for label in ("strata", "blocks", "rows", "files")}),
        readouts={
            target: ReadOut(
                readout.target, chosen(readout.prefixes), chosen(readout.positive), chosen(readout.negative)
            )
            for target, readout in design.readouts.items()
        },
    )


def thinned(design: Design, n_items: int, rng: np.random.Generator) -> Design:
    """A design of about `n_items` items: whole couples at random, evenly from every block and stratum.

    The design itself where it has no more than that.
    """
    if n_items >= len(design.item_names):
        return design
    couples, first = np.unique(design.couples, return_index=True)
    cell = design.blocks[first] * (design.strata.max() + 1) + design.strata[first]
    shuffled = rng.permutation(len(couples))
    # Each couple's rank within its cell: the first of every cell come before the second of any.
    order = shuffled[np.argsort(cell[shuffled], kind="stable")]
    sizes = np.unique(cell, return_counts=True)[1]
    rank = np.concatenate([np.arange(size) for size in sizes])
    dealt = order[np.argsort(rank, kind="stable")]
    items_of = np.array([len(np.unique(design.items[design.couples == couple])) for couple in couples[dealt]])
    keep = dealt[: int(np.searchsorted(items_of.cumsum(), n_items, side="left")) + 1]
    struck = np.flatnonzero(~np.isin(design.couples, couples[keep])).tolist()
    return without(design, struck)


def write(design: Design, path: str | Path) -> None:
    """Write a design as Parquet, one row a text.

    What is not per text is JSON in the schema's metadata. Equal designs give equal bytes. Raises UserError
    where the disk is full.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {"text": pa.array(design.texts, pa.string())}
    columns |= _per_text(design)
    for target, readout in design.readouts.items():
        for part in ("prefixes", "positive", "negative"):
            columns[f"readout.{target}.{part}"] = pa.array(getattr(readout, part), pa.string())
    about = {
        "name": design.name,
        "item_names": design.item_names,
        "stratum_names": design.stratum_names,
        "factors": list(design.factors),
        "carriers": [[factor, design.carrier_counts[factor]] for factor in design.carriers],
        "marks": list(design.marks),
        "primary": design.primary,
        "needed": design.needed,
        "aliases": list(design.aliases.items()),
        "readouts": list(design.readouts),
        "priors": list(design.priors.items()),
        "reweighted": design.reweighted,
    }
    metadata = {b"counterprobe.design": json.dumps(about, ensure_ascii=False).encode()}
    with manifest.atomic(path) as temporary:
        temporary.write_bytes(checksum.parquet(pa.table(columns).replace_schema_metadata(metadata)))


def read(path: str | Path) -> Design:
    """Read what `write` wrote. Raises UserError where the file is missing, damaged or not a design."""
    table = checksum.read_parquet(path)
    try:
        about = json.loads((table.schema.metadata or {})[b"counterprobe.design"])
    except KeyError:
        raise UserError(f"{path}: not a design; delete it and run again") from None
    arrays = {column: table[column].to_numpy() for column in table.column_names if not column.startswith("readout.")}
    strings = {
        column: tuple(table[column].to_pylist()) for column in table.column_names if column.startswith("readout.")
    }
    return Design(
        name=about["name"],
        texts=tuple(table["text"].to_pylist()),
        items=arrays["item"],
        item_names=tuple(about["item_names"]),
        couples=arrays["couple"],
        strata=arrays["stratum"],
        stratum_names=tuple(about["stratum_names"]),
        factors={factor: arrays[f"factor.{factor}"] for factor in about["factors"]},
        carriers={factor: arrays[f"carrier.{factor}"] for factor, _ in about["carriers"]},
        carrier_counts=dict(about["carriers"]),
        blocks=arrays["block"],
        rows=arrays["row"],
        files=arrays["file"],
        marks={position: arrays[f"mark.{position}"] for position in about["marks"]},
        primary=tuple(about["primary"]),
        needed=tuple(about["needed"]),
        aliases=dict(about["aliases"]),
        readouts={
            target: ReadOut(
                target,
                *(strings[f"readout.{target}.{part}"] for part in ("prefixes", "positive", "negative")),
            )
            for target in about["readouts"]
        },
        priors=dict(about["priors"]),
        reweighted=about.get("reweighted", False),
    )


def from_csv(name: str, spec: Mapping[str, Any], root: str | Path) -> Design:
    """A design from tables of labelled texts.

    Keys of `spec`: `files` (a list of {path, set}: paths are relative to `root`, `set` adds columns with one
    value), `text` (a column), `group` (a column, or {regex: ...} whose one group is searched in the text: the
    item), `features` (factor -> column; 0/1, true/false, True/False), `primary` (two of the features).
    Optional: `derive` (name -> "a ^ b": names a parity), `carriers` (factor -> column whose values realise
    it), `stratum` (a column), `marks` (read position -> regular expression searched in the text; the last
    character of its first group, or of the whole match, is read), `prior` (feature -> share of True, below
    one half).

    Reading positions `last`, and `period` and `before_period` where every text has one, come by themselves.

    Either every item has every combination of the features equally often, or none has (a feature drawn by
    row, or one that is constant within an item): a few incomplete items among complete ones are an error, unless
    `unbalanced` is "reweight": then contrasts are those of cell means after item fixed effects.
    Everything that is wrong with a table is a UserError that names file, line and column.
    """
    table = _load(name, spec, Path(root))
    texts = tuple(table.values(spec["text"], "text"))
    table.refuse_repeats(texts)
    item_names, items = _encode(table.groups(spec["group"], texts))
    factors = {factor: table.booleans(column, f"features.{factor}") for factor, column in spec["features"].items()}
    if len(factors) < 2:
        raise UserError(f"design '{name}', features: one feature has no XOR; name at least two")
    if len(factors) > MOST_FEATURES:
        raise UserError(
            f"design '{name}', features: {len(factors)} have 2^{len(factors)} combinations, each of which has to be there; "
            f"name at most {MOST_FEATURES}, or make several designs of the same files"
        )
    for factor in factors:
        if not re.fullmatch(r"[^\s^]+", factor):
            raise UserError(f"design '{name}', features: '{factor}' has a blank or ^ in it; rename it")
    if spec.get("stratum"):
        stratum_names, strata = _encode(table.values(spec["stratum"], "stratum"))
        table.refuse_split_items(items, item_names, strata, spec["stratum"])
    else:
        stratum_names, strata = ("all",), np.zeros(len(texts), dtype=np.int64)
    carriers, carrier_counts = _csv_carriers(name, table, spec.get("carriers") or {}, factors)

    design = Design(
        name=name,
        texts=texts,
        items=items,
        item_names=item_names,
        couples=items,
        strata=strata,
        stratum_names=stratum_names,
        factors=factors,
        carriers=carriers,
        carrier_counts=carrier_counts,
        blocks=np.full(len(texts), -1, dtype=np.int64),
        rows=np.array(table.rows, dtype=np.int64),
        files=np.array(table.files, dtype=np.int64),
        marks=_csv_marks(name, table, spec.get("marks") or {}, texts),
        primary=primary_pair(name, spec["primary"], factors),
        needed=(),
        aliases={},
        readouts={},
        reweighted=spec.get("unbalanced") == "reweight",
    )
    design = _with_derived(design, spec.get("derive") or {})
    design = _with_priors(design, spec.get("prior") or {})
    _check_cells(design)
    return design


@dataclass(frozen=True)
class _Table:
    """Rows of all files of a csv design, with where each came from."""

    design: str
    paths: tuple[Path, ...]
    records: tuple[Mapping[str, str], ...]
    files: tuple[int, ...]
    rows: tuple[int, ...]
    lines: tuple[int, ...]

    def place(self, i: int) -> str:
        return f"{self.paths[self.files[i]]}, line {self.lines[i]}"

    def values(self, column: str, key: str) -> list[str]:
        """One column of every row, none of it empty."""
        found = []
        for i, record in enumerate(self.records):
            if column not in record:
                raise UserError(
                    f"{self.paths[self.files[i]]}: no column '{column}' (design '{self.design}', {key})"
                    f"{nearest(column, record)}; columns are {', '.join(record)}"
                )
            if not record[column].strip():
                raise UserError(f"{self.place(i)}, column '{column}': empty; fill it in or remove the row")
            found.append(record[column])
        return found

    def booleans(self, column: str, key: str) -> Bool[np.ndarray, "n"]:
        values = self.values(column, key)
        for i, value in enumerate(values):
            if value.strip() not in BOOLEANS:
                raise UserError(
                    f"{self.place(i)}, column '{column}': '{value}' is not a boolean; write 0 or 1, true or false"
                )
        labels = np.array([BOOLEANS[value.strip()] for value in values])
        if labels.all() or not labels.any():
            where = ", ".join(str(path) for path in self.paths)
            raise UserError(
                f"{where}, column '{column}': always {labels[0]} (design '{self.design}', {key}); "
                "a feature needs texts of both classes"
            )
        return labels

    def groups(self, group: str | Mapping[str, str], texts: Sequence[str]) -> list[str]:
        if isinstance(group, str):
            return self.values(group, "group")
        pattern = _compile(self.design, "group.regex", group["regex"])
        if pattern.groups != 1:
            raise UserError(
                f"design '{self.design}', group.regex: {pattern.groups} groups in '{pattern.pattern}'; "
                "put one pair of parentheses around what names the item"
            )
        matches = [pattern.search(text) for text in texts]
        for i, match in enumerate(matches):
            if not (match and match[1]):
                raise UserError(
                    f"{self.place(i)}: group.regex '{pattern.pattern}' finds no item in '{texts[i]}'; widen it"
                )
        return [match[1] for match in matches]

    def refuse_repeats(self, texts: Sequence[str]) -> None:
        """A repeated text is a repeated activation: it leaks between folds, or has two labels at once."""
        first: dict[str, int] = {}
        for i, text in enumerate(texts):
            if text in first:
                raise UserError(f"{self.place(i)}: the same text as {self.place(first[text])}; remove one of them")
            first[text] = i

    def refuse_split_items(self, items: np.ndarray, names: Sequence[str], strata: np.ndarray, column: str) -> None:
        first: dict[int, int] = {}
        for i, item in enumerate(items.tolist()):
            if strata[first.setdefault(item, i)] != strata[i]:
                raise UserError(
                    f"{self.place(i)}, column '{column}': item '{names[item]}' is in another stratum than at "
                    f"{self.place(first[item])}; an item belongs to one"
                )


def _load(design: str, spec: Mapping[str, Any], root: Path) -> _Table:
    paths = tuple(root / entry["path"] for entry in spec["files"])
    records, files, rows, lines = [], [], [], []
    for index, (path, entry) in enumerate(zip(paths, spec["files"], strict=True)):
        constants = {column: str(value) for column, value in (entry.get("set") or {}).items()}
        for row, (line, record) in enumerate(read_rows(path)):
            clash = constants.keys() & record.keys()
            if clash:
                raise UserError(
                    f"{path}: has a column '{min(clash)}' already; take it out of `set` in design '{design}'"
                )
            records.append(record | constants)
            files.append(index)
            rows.append(row)
            lines.append(line)
    return _Table(design, paths, tuple(records), tuple(files), tuple(rows), tuple(lines))


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, {column: value}) of every row of a csv file. Raises UserError naming file and line."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or ()
            repeated = [column for column in columns if columns.count(column) > 1]
            if repeated:
                raise UserError(f"{path}, line 1: two columns are called '{repeated[0]}'; rename one")
            empty = True
            for record in reader:
                empty = False
                if None in record or None in record.values():
                    raise UserError(
                        f"{path}, line {reader.line_num}: not {len(columns)} fields as in the header; "
                        "put texts that hold commas in double quotes"
                    )
                yield reader.line_num, record
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; restore it or correct its path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except (csv.Error, OSError) as error:
        raise UserError(f"{path}: cannot be read as csv ({error}); repair it") from None
    if empty:
        raise UserError(f"{path}: no rows; write a header and at least one row")


def _csv_carriers(
    name: str, table: _Table, columns: Mapping[str, str], factors: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    carriers, counts = {}, {}
    for factor, column in columns.items():
        if factor not in factors:
            raise UserError(f"design '{name}', carriers: '{factor}' is not a feature{nearest(factor, factors)}")
        values, units = _encode(table.values(column, f"carriers.{factor}"))
        truths = np.bincount(units, weights=factors[factor], minlength=len(values))
        sizes = np.bincount(units, minlength=len(values))
        both = np.flatnonzero((truths > 0) & (truths < sizes))
        if both.size:
            raise UserError(
                f"design '{name}', carriers.{factor}: '{values[both[0]]}' of column '{column}' "
                "stands for True and for False; a carrier realises one class of its factor"
            )
        carriers[factor] = units
        counts[factor] = int(min((truths > 0).sum(), (truths == 0).sum()))
    return carriers, counts


def _csv_marks(
    name: str, table: _Table, patterns: Mapping[str, str], texts: Sequence[str]
) -> dict[str, Int[np.ndarray, "n"]]:
    marks = {"last": [len(text.rstrip()) - 1 for text in texts]}
    stops = [list(re.finditer(r"(?P<before>\S)\s*(?P<period>\.)(?=\s|$)", text)) for text in texts]
    if all(stops):
        marks["period"] = [found[-1].start("period") for found in stops]
        marks["before_period"] = [found[-1].start("before") for found in stops]
    for position, pattern in patterns.items():
        compiled = _compile(name, f"marks.{position}", pattern)
        marks[position] = []
        for i, text in enumerate(texts):
            match = compiled.search(text)
            group = 1 if compiled.groups else 0
            if not (match and match[group]):
                raise UserError(f"{table.place(i)}: marks.{position} '{pattern}' finds nothing in '{text}'; widen it")
            marks[position].append(match.end(group) - 1)
    return {position: np.array(characters, dtype=np.int64) for position, characters in marks.items()}


def primary_pair(design: str, pair: Sequence[str], factors: Iterable[str]) -> tuple[str, str]:
    """The pre-registered pair, checked against the factors. Raises UserError."""
    for factor in pair:
        if factor not in factors:
            raise UserError(f"design '{design}', primary: '{factor}' is not a feature{nearest(factor, factors)}")
    if len(pair) != 2 or pair[0] == pair[1]:
        raise UserError(f"design '{design}', primary: {', '.join(pair)}; name two different features")
    return (pair[0], pair[1])


def _with_derived(design: Design, derive: Mapping[str, str]) -> Design:
    """Names for parities, in the order of the configuration, so that one may be used in the next."""
    for name, expression in derive.items():
        if not re.fullmatch(r"[^\s^]+", name):
            raise UserError(f"design '{design.name}', derive: '{name}' has a blank or ^ in it; rename it")
        if name in design.factors or name in design.aliases.values():
            raise UserError(f"design '{design.name}', derive: '{name}' is a feature already; rename it")
        meaning = canonical(design, expression)
        if meaning in design.factors or meaning in design.aliases:
            same = design.aliases.get(meaning, meaning)
            raise UserError(f"design '{design.name}', derive.{name}: '{expression}' is '{same}' itself; leave it out")
        design = replace(design, aliases={**design.aliases, meaning: name})
    return design


def _with_priors(design: Design, priors: Mapping[str, float]) -> Design:
    shares = {}
    for name, declared in priors.items():
        labels = parity(design, name)
        share = float(labels.mean())
        if not 0 < declared < 0.5:
            raise UserError(
                f"design '{design.name}', prior.{name}: {declared} is not the share of a rare feature; "
                "give a share between 0 and 0.5, or leave prior out"
            )
        if abs(share - declared) > max(0.1 * declared, 1 / labels.size):
            raise UserError(
                f"design '{design.name}', prior.{name}: {declared} declared, but {share:.4f} of the texts "
                "are True; correct the one or the other"
            )
        shares[canonical(design, name)] = share
    return replace(design, priors=shares)


def _check_cells(design: Design) -> None:
    """Refuse tables with holes, which a rare feature or a layout without a complete item has by nature."""
    seen = np.bincount(_cells(design.factors), minlength=2 ** len(design.factors))
    if not seen.all():
        absent = _describe(int(np.flatnonzero(seen == 0)[0]), design.factors)
        raise UserError(
            f"design '{design.name}': no text has {absent}, so the features' XORs cannot be told from the "
            "features; add such texts or leave a feature out"
        )
    if design.priors or design.reweighted or not _complete(design.items, design.factors).any():
        return
    problem = _imbalance(design.items, design.item_names, design.factors)
    if problem:
        raise UserError(
            f"design '{design.name}': {problem}; add the missing texts, remove the item, or set "
            f"designs.{design.name}.unbalanced: reweight"
        )


def _encode(values: Iterable[str]) -> tuple[tuple[str, ...], Int[np.ndarray, "n"]]:
    """Names in order of first appearance, and the index of each value among them."""
    values = [value.strip() for value in values]
    names = {name: index for index, name in enumerate(dict.fromkeys(values))}
    return tuple(names), np.array([names[value] for value in values], dtype=np.int64)


def _cells(factors: Mapping[str, np.ndarray]) -> Int[np.ndarray, "n"]:
    return sum(labels.astype(np.int64) << bit for bit, labels in enumerate(factors.values()))


def _counts(items: np.ndarray, factors: Mapping[str, np.ndarray]) -> Int[np.ndarray, "items cells"]:
    width = 2 ** len(factors)
    shape = (int(items.max()) + 1, width)
    return np.bincount(items * width + _cells(factors), minlength=shape[0] * width).reshape(shape)


def _complete(items: np.ndarray, factors: Mapping[str, np.ndarray]) -> Bool[np.ndarray, "items"]:
    counts = _counts(items, factors)
    return (counts.min(1) > 0) & (counts.min(1) == counts.max(1))


def _imbalance(items: np.ndarray, names: Sequence[str], factors: Mapping[str, np.ndarray]) -> str | None:
    """What keeps the first item from having every cell equally often, and how many more there are."""
    bad = np.flatnonzero(~_complete(items, factors))
    if not bad.size:
        return None
    counts = _counts(items, factors)
    parts = []
    for item in bad[:3]:
        row = counts[item]
        missing = np.flatnonzero(row == 0)
        if missing.size:
            shown = "; ".join(_describe(int(cell), factors) for cell in missing[:2])
            more = f" and {missing.size - 2} more" if missing.size > 2 else ""
            parts.append(f"item '{names[item]}' has no text with {shown}{more}")
        else:
            most = _describe(int(row.argmax()), factors)
            least = _describe(int(row.argmin()), factors)
            parts.append(f"item '{names[item]}' has {row.max()} texts with {most} but {row.min()} with {least}")
    rest = f" (and {bad.size - 3} more items)" if bad.size > 3 else ""
    return ", ".join(parts) + rest


def _describe(cell: int, factors: Mapping[str, np.ndarray]) -> str:
    return " ".join(f"{factor}={cell >> bit & 1}" for bit, factor in enumerate(factors))


def _per_text(design: Design) -> dict[str, np.ndarray]:
    columns = {
        "item": design.items,
        "couple": design.couples,
        "stratum": design.strata,
        "block": design.blocks,
        "row": design.rows,
        "file": design.files,
    }
    for prefix, arrays in (("factor", design.factors), ("carrier", design.carriers), ("mark", design.marks)):
        columns |= {f"{prefix}.{label}": array for label, array in arrays.items()}
    return columns


def _compile(name: str, key: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"design '{name}', {key}: '{pattern}' is no regular expression ({error}); correct it") from None
