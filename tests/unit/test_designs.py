"""Designs: the algebra of parities, files of the same bytes for the same design, and tables from users."""

import csv
import itertools
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterprobe import checksum, design_audit, designs, statements
from counterprobe.designs import Design
from counterprobe.progress import UserError

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
CORPUS = {"topics": {"cities": 12, "animals": 12}, "carriers": 4, "answer": "coin", "seed": 3}
FACTORS = ("speaker", "negated", "match", "suffix")

TWO_FILES = {
    "source": "csv",
    "files": [
        {"path": "cities.csv", "set": {"negated": False}},
        {"path": "neg_cities.csv", "set": {"negated": True}},
    ],
    "text": "statement",
    "group": "city",
    "features": {"truth": "label", "negated": "negated"},
    "derive": {"match": "truth ^ negated"},
    "primary": ["truth", "negated"],
}


@pytest.fixture(scope="module")
def design():
    return statements.factorial("factorial", {"blocks": 2}, statements.world(CORPUS, RESOURCES))


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def rows_of(items=("oslo", "rome", "cairo"), names=("Ann", "Bob")):
    """Complete: each item said true and false by each of two people, who speak for woman = 1 and 0."""
    return [
        {
            "text": f"{name} says {item} is {'warm' if warm else 'cold'}.",
            "item": item,
            "warm": warm,
            "name": name,
        }
        | {"woman": "true" if name == names[0] else "false"}
        for item, warm, name in itertools.product(items, (1, 0), names)
    ]


ONE_FILE = {
    "source": "csv",
    "files": [{"path": "texts.csv"}],
    "text": "text",
    "group": "item",
    "features": {"warm": "warm", "woman": "woman"},
    "primary": ["warm", "woman"],
}


def load(tmp_path, rows, **changes):
    write_csv(tmp_path / "texts.csv", rows)
    return designs.from_csv("mine", ONE_FILE | changes, tmp_path)


def same(left: Design, right: Design) -> bool:
    assert repr(left.__dataclass_fields__) == repr(right.__dataclass_fields__)
    for name in left.__dataclass_fields__:
        one, other = getattr(left, name), getattr(right, name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype
            assert np.array_equal(one, other)
        elif isinstance(one, dict) and any(isinstance(value, np.ndarray) for value in one.values()):
            assert list(one) == list(other)
            assert all(one[key].dtype == other[key].dtype and np.array_equal(one[key], other[key]) for key in one)
        else:
            assert one == other
    return True


# Parities


def test_targets_come_by_size_and_then_in_the_order_of_the_design(design):
    names = list(designs.targets(design))
    assert len(names) == 15
    assert names[:6] == [*FACTORS, "speaker^negated", "speaker^match"]
    assert names[-1] == "speaker^negated^match^suffix"
    assert [name.count("^") for name in names] == [0] * 4 + [1] * 6 + [2] * 4 + [3]
    assert list(designs.targets(design, max_order=2)) == names[:10]


@given(data=st.data())
def test_a_parity_is_the_product_of_signs_in_any_order_of_its_factors(design, data):
    subset = data.draw(st.lists(st.sampled_from(FACTORS), min_size=1, unique=True))
    product = math.prod(np.where(design.factors[factor], -1, 1) for factor in subset)
    written = data.draw(st.sampled_from(("^", " ^ "))).join(subset)
    assert (designs.parity(design, written) == (product == -1)).all()
    assert designs.canonical(design, written) == "^".join(f for f in FACTORS if f in subset)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("truth", "negated^match"),
        ("match^negated", "negated^match"),
        ("truth^negated", "match"),
        ("suffix^truth", "negated^match^suffix"),
        ("speaker^speaker^suffix", "suffix"),
    ],
)
def test_aliases_may_stand_in_parities_and_what_is_twice_cancels(design, name, meaning):
    assert designs.canonical(design, name) == meaning
    assert (designs.parity(design, name) == designs.targets(design)[meaning]).all()


def test_unknown_and_constant_targets_are_refused(design):
    with pytest.raises(
        UserError, match=r"'speaker\^negatd' names no feature: there is no 'negatd'; did you mean 'negated'"
    ):
        designs.parity(design, "speaker^negatd")
    with pytest.raises(UserError, match=r"'truth\^match\^negated' is constant"):
        designs.parity(design, "truth^match^negated")


def test_cells_number_the_combinations_by_their_bits(design):
    cells = designs.cells(design)
    for bit, factor in enumerate(FACTORS):
        assert (((cells // 2**bit) % 2 == 1) == design.factors[factor]).all()
    assert set(Counter(cells.tolist()).values()) == {24}


# Balance


def test_balance_is_asked_of_every_item(design):
    designs.check_balanced(design)
    flipped = design.factors["speaker"].copy()
    flipped[np.flatnonzero(design.items == 5)[0]] ^= True
    broken = replace(design, factors=design.factors | {"speaker": flipped})
    with pytest.raises(
        UserError, match=rf"'{design.item_names[5]}' has no text with speaker=0 negated=0 match=0 suffix=0"
    ):
        designs.check_balanced(broken)
    rax = statements.rax("rax", {}, statements.world(CORPUS, RESOURCES))
    with pytest.raises(UserError, match=r"and 21 more items"):
        designs.check_balanced(rax)


def test_incomplete_items_beside_complete_ones_are_refused_by_name_or_reweighted(tmp_path):
    write_csv(tmp_path / "texts.csv", rows_of(items=[f"town{i}" for i in range(8)])[1:])
    with pytest.raises(UserError, match=r"item 'town0' has no text with warm=.*designs\.d\.unbalanced: reweight"):
        designs.from_csv("d", ONE_FILE, tmp_path)
    kept = designs.from_csv("d", {**ONE_FILE, "unbalanced": "reweight"}, tmp_path)
    assert len(kept.texts) == 31
    designs.write(kept, tmp_path / "d.parquet")
    read = designs.read(tmp_path / "d.parquet")
    for design, verdict in ((read, "flagged"), (replace(read, reweighted=False), "refused")):
        findings = design_audit.audit(design, ["items"]).findings
        balance = findings[findings.check == "balance"]
        assert balance.verdict.item() == verdict
        assert "'town0' has warm=True" in balance.message.item()


def test_dropping_texts_drops_whole_couples_and_keeps_the_balance(design):
    struck = {int(design.couples[0]), int(design.couples[-1])}
    smaller = designs.without(design, [0, len(design.texts) - 1])
    designs.check_balanced(smaller)
    kept = [i for i in range(len(design.texts)) if design.couples[i] not in struck]
    assert smaller.texts == tuple(design.texts[i] for i in kept)
    assert [smaller.item_names[i] for i in smaller.items] == [design.item_names[design.items[i]] for i in kept]
    assert len(smaller.item_names) == len(np.unique(smaller.items)) == len(np.unique(design.items[kept]))
    assert smaller.readouts["suffix"].positive == tuple(design.readouts["suffix"].positive[i] for i in kept)
    assert (smaller.carriers["speaker"] == design.carriers["speaker"][kept]).all()
    with pytest.raises(UserError, match="no item is left"):
        designs.without(design, range(len(design.texts)))


def test_arrays_of_the_wrong_length_are_not_a_design(design):
    with pytest.raises(ValueError, match=r"blocks has shape \(3,\)"):
        replace(design, blocks=np.zeros(3, dtype=np.int64))


# Files


def test_designs_survive_a_round_trip_and_are_the_same_bytes(design, tmp_path):
    for name, one in (
        ("factorial", design),
        ("rax", statements.rax("rax", {}, statements.world(CORPUS, RESOURCES))),
        ("csv", load(tmp_path, rows_of(), carriers={"woman": "name"}, derive={"same": "warm^woman"})),
    ):
        path, again = tmp_path / f"{name}.parquet", tmp_path / f"{name}.again.parquet"
        designs.write(one, path)
        back = designs.read(path)
        assert same(one, back)
        designs.write(back, again)
        assert path.read_bytes() == again.read_bytes()


def test_files_that_are_no_designs_are_refused(design, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        designs.read(tmp_path / "absent.parquet")
    designs.write(design, tmp_path / "cut.parquet")
    whole = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "other.parquet").write_bytes(checksum.parquet(pa.table({"text": ["a"]})))
    for name, problem in (("cut", "damaged"), ("other", "not a design")):
        with pytest.raises(UserError, match=rf"{name}\.parquet: {problem}"):
            designs.read(tmp_path / f"{name}.parquet")


# Tables from users


def test_the_published_cities_are_one_complete_design(shared):
    design = designs.from_csv("cities", TWO_FILES, shared / "data" / "truth_is_universal")
    assert (len(design.texts), len(design.item_names)) == (2992, 748)
    designs.check_balanced(design)
    assert (design.factors["negated"] == np.array([" is not in " in text for text in design.texts])).all()
    with open(shared / "data" / "truth_is_universal" / "cities.csv", encoding="utf-8", newline="") as file:
        right = [row["country"] == row["correct_country"] for row in csv.DictReader(file)]
    assert (designs.parity(design, "match") == np.array(right + right)).all()
    assert design.aliases == {"truth^negated": "match"}
    assert design.primary == ("truth", "negated")
    assert (design.rows == np.tile(np.arange(1496), 2)).all()
    assert (design.files == np.repeat([0, 1], 1496)).all()
    assert (design.blocks == -1).all()
    for i in range(0, 2992, 211):
        assert design.texts[i][design.marks["period"][i]] == "."
        assert design.marks["last"][i] == design.marks["period"][i] == len(design.texts[i]) - 1


def test_items_can_be_found_in_the_text(shared, tmp_path):
    """84 animals, 4 of which are in the table only once: named, and complete without them."""
    folder = shared / "data" / "truth_is_universal"
    spec = TWO_FILES | {
        "files": [
            {"path": "animal_class.csv", "set": {"negated": 0}},
            {"path": "neg_animal_class.csv", "set": {"negated": 1}},
        ],
        "group": {"regex": "^The (.+?) is"},
    }
    with pytest.raises(UserError, match=r"item 'giant anteater' has no text with truth=1 negated=0.*1 more items"):
        designs.from_csv("animals", spec, folder)
    for name in ("animal_class.csv", "neg_animal_class.csv"):
        lines = (folder / name).read_text(encoding="utf-8").splitlines(keepends=True)
        once = ("giant anteater", "manta ray", "polar bear", "sea turtle")
        (tmp_path / name).write_text(
            "".join(line for line in lines if not any(f"The {word} " in line for word in once)),
            encoding="utf-8",
        )
    design = designs.from_csv("animals", spec, tmp_path)
    assert (len(design.texts), len(design.item_names)) == (320, 80)
    assert "hummingbird" in design.item_names
    designs.check_balanced(design)


def test_columns_become_factors_carriers_strata_and_marks(tmp_path):
    rows = rows_of()
    for row in rows:
        row["continent"] = "africa" if row["item"] == "cairo" else "europe"
    design = load(
        tmp_path,
        rows,
        carriers={"woman": "name"},
        stratum="continent",
        marks={"item": r"says (\w+)", "verb": "is"},
        derive={"same": "warm ^ woman"},
    )
    assert (design.factors["warm"] == np.array([row["warm"] == 1 for row in rows])).all()
    assert (design.factors["woman"] == np.array([row["name"] == "Ann" for row in rows])).all()
    assert design.carrier_counts == {"woman": 1}
    assert (design.carriers["woman"] == np.array([0 if row["name"] == "Ann" else 1 for row in rows])).all()
    assert [design.stratum_names[s] for s in design.strata] == [row["continent"] for row in rows]
    assert designs.canonical(design, "same") == "warm^woman"
    for text, item, verb, before in zip(
        design.texts, *(design.marks[p] for p in ("item", "verb", "before_period")), strict=True
    ):
        assert text[: item + 1] == " ".join(text.split()[:3])
        assert text[: verb + 1].endswith(" is")
        assert text[before:] in ("m.", "d.")


@pytest.mark.parametrize(
    ("end", "positions"),
    [
        ("", {"last"}),
        (". banana", {"last", "period", "before_period"}),
        (" .", {"last", "period", "before_period"}),
    ],
)
def test_periods_are_read_where_every_text_has_one(tmp_path, end, positions):
    rows = rows_of()
    for row in rows:
        row["text"] = (f"St. {row['text']}" if end else row["text"]).removesuffix(".") + end
    design = load(tmp_path, rows)
    assert set(design.marks) == positions
    for i, text in enumerate(design.texts):
        assert design.marks["last"][i] == len(text) - 1
        if "period" in positions:
            assert design.marks["period"][i] == text.rindex(".")
            assert text[: design.marks["before_period"][i] + 1].endswith(("warm", "cold"))


def test_one_row_draws_are_incomplete_by_nature(tmp_path):
    """As in the published layout: every item has four of the eight cells, drawn by row."""
    coin = np.random.default_rng(0).permutation(np.arange(20) % 2)
    rows = [
        {"text": f"{('Bob', 'Ann')[coin[2 * i + warm]]}: city{i} is {'not ' * no}{('cold', 'warm')[warm]}."}
        | {"item": i, "warm": warm, "woman": int(coin[2 * i + warm]), "negated": no}
        for i, warm, no in itertools.product(range(10), (0, 1), (0, 1))
    ]
    design = load(tmp_path, rows, features={"woman": "woman", "warm": "warm", "negated": "negated"})
    assert len(design.item_names) == 10
    assert all(len(np.unique(designs.cells(design)[design.items == item])) == 4 for item in range(10))


def test_a_rare_feature_declares_its_share(tmp_path):
    rows = [
        {"text": f"text {i} {rare} {common}", "item": i, "warm": rare, "woman": common}
        for i in range(100)
        for rare, common in [(int(i % 20 == 0), i // 20 % 2), (0, 1 - i // 20 % 2)]
    ]
    share = np.mean([row["warm"] for row in rows])
    design = load(tmp_path, rows, prior={"warm": 0.025})
    assert design.priors == {"warm": share}
    with pytest.raises(UserError, match=r"prior\.warm: 0\.1 declared, but 0\.0250 of the texts are True"):
        load(tmp_path, rows, prior={"warm": 0.1})
    with pytest.raises(UserError, match=r"prior\.warm: 0\.6 is not the share of a rare feature"):
        load(tmp_path, rows, prior={"warm": 0.6})


def edited(position, **values):
    rows = rows_of()
    rows[position] = rows[position] | values
    return rows


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (edited(4, warm="maybe"), {}, r"texts\.csv, line 6, column 'warm': 'maybe' is not a boolean"),
        (edited(4, warm="1.0"), {}, r"line 6, column 'warm': '1\.0' is not a boolean"),
        (edited(4, warm=""), {}, r"line 6, column 'warm': empty"),
        (edited(4, text=" "), {}, r"line 6, column 'text': empty"),
        (
            [row | {"warm": 1} for row in rows_of()],
            {},
            r"texts\.csv, column 'warm': always True .*features\.warm",
        ),
        (
            rows_of(),
            {"features": {"warm": "warn", "woman": "woman"}},
            r"no column 'warn'.*did you mean 'warm'",
        ),
        (
            rows_of(),
            {"text": "sentence"},
            r"texts\.csv: no column 'sentence' \(design 'mine', text\).*columns are text",
        ),
        (rows_of(), {"features": {"warm": "warm"}}, r"one feature has no XOR"),
        (rows_of(), {"features": {"wa^rm": "warm", "woman": "woman"}}, r"'wa\^rm' has a blank or \^"),
        (rows_of()[1:], {}, r"item 'oslo' has no text with warm=1 woman=1"),
        (
            [*rows_of(), rows_of()[0] | {"text": "Ann thinks that oslo is warm."}],
            {},
            r"item 'oslo' has 2 texts with warm=1 woman=1 but 1 with warm=0 woman=0",
        ),
        ([*rows_of(), rows_of()[0]], {}, r"line 14: the same text as .*texts\.csv, line 2"),
        (
            [row for row in rows_of() if (row["warm"], row["woman"]) != (1, "true")],
            {},
            r"no text has warm=1 woman=1",
        ),
        (rows_of(), {"primary": ["warm", "womn"]}, r"primary: 'womn' is not a feature; did you mean 'woman'"),
        (rows_of(), {"primary": ["warm", "warm"]}, r"two different features"),
        (
            rows_of(),
            {"features": {f"f{i}": "warm" for i in range(40)}},
            r"features: 40 have 2\^40 combinations.*at most 10",
        ),
        (
            rows_of(),
            {"derive": {"same": "warm ^ wman"}},
            r"'warm \^ wman' names no feature.*did you mean 'woman'",
        ),
        (rows_of(), {"derive": {"warm": "warm ^ woman"}}, r"'warm' is a feature already"),
        (rows_of(), {"derive": {"a b": "warm ^ woman"}}, r"'a b' has a blank"),
        (rows_of(), {"derive": {"hot": "warm"}}, r"derive\.hot: 'warm' is 'warm' itself"),
        (
            rows_of(),
            {"derive": {"x": "warm^woman", "y": "woman^warm"}},
            r"derive\.y: 'woman\^warm' is 'x' itself",
        ),
        (
            rows_of(),
            {"carriers": {"wman": "name"}},
            r"carriers: 'wman' is not a feature; did you mean 'woman'",
        ),
        (rows_of(), {"carriers": {"warm": "name"}}, r"'Ann' of column 'name' stands for True and for False"),
        (
            rows_of(),
            {"stratum": "name"},
            r"line 3, column 'name': item 'oslo' is in another stratum than at .* line 2",
        ),
        (
            rows_of(),
            {"group": {"regex": "city of (.+?) is"}},
            r"line 2: group\.regex .* finds no item in 'Ann says oslo",
        ),
        (rows_of(), {"group": {"regex": r"says \w+"}}, r"group\.regex: 0 groups"),
        (rows_of(), {"group": {"regex": "says (("}}, r"group\.regex: .* is no regular expression"),
        (rows_of(), {"marks": {"name": "Ann"}}, r"line 3: marks\.name 'Ann' finds nothing in 'Bob says oslo"),
        (rows_of(), {"files": [{"path": "other.csv"}]}, r"other\.csv: no such file"),
        (rows_of(), {"files": [{"path": "texts.csv", "set": {"warm": 1}}]}, r"has a column 'warm' already"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path, rows, changes, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, rows, **changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"texts\.csv: no rows"),
        (b"text,item,warm,woman\n", r"texts\.csv: no rows"),
        (b"text,text,warm,woman\na,b,1,0\n", r"line 1: two columns are called 'text'"),
        (
            b"text,item,warm,woman\nHot, says oslo,oslo,1,0\n",
            r"line 2: not 4 fields as in the header; put texts",
        ),
        (b"text,item,warm,woman\nHot,oslo,1\n", r"line 2: not 4 fields"),
        (b"text,item,warm,woman\n\xff\xfe,oslo,1,0\n", r"texts\.csv: not UTF-8"),
        (b'text,item,warm,woman\n"Hot"ter,oslo,1,0\n', r"cannot be read as csv"),
    ],
)
def test_files_that_are_not_tables_are_named(tmp_path, content, message):
    (tmp_path / "texts.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        designs.from_csv("mine", ONE_FILE, tmp_path)


def test_missing_cells_are_named_in_the_published_table_too(shared, tmp_path):
    for name in ("cities.csv", "neg_cities.csv"):
        shutil.copy(shared / "data" / "truth_is_universal" / name, tmp_path / name)
    lines = (tmp_path / "cities.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "cities.csv").write_text("".join(lines[:1] + lines[2:]), encoding="utf-8")
    with pytest.raises(UserError, match=r"^design 'cities': item 'Krasnodar' has no text with truth=1 negated=0;"):
        designs.from_csv("cities", TWO_FILES, tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path):
    write_csv(tmp_path / "texts.csv", rows_of())
    path = tmp_path / "texts.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(designs.from_csv("mine", ONE_FILE, tmp_path).texts) == 12
