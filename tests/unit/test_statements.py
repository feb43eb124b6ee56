"""Generated designs are balanced as they say, and lines of the corpus say what their own words imply.

Texts are taken apart here by a parser of the test's own, which knows the grammar and the tables but none of
the code.
"""

import csv
import itertools
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterprobe import designs, statements
from counterprobe.progress import UserError

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
CORPUS = {"topics": {"cities": 48, "animals": 48}, "carriers": 16, "answer": "none", "seed": 0}

PROBED = re.compile(
    r"(?P<name>\w+): (?:The city of (?P<city>\w+) is(?P<cnot> not)? in the country (?P<country>\w+)|"
    r"The kind of (?P<animal>\w+) is(?P<anot> not)? in the class (?P<class>\w+))\. "
    r"(?P<suffix>\w+) So that is"
)
REST = re.compile(
    r"(?: (?P<answer>up|down))? (?P<truth>true|false)\. "
    r"(?P<pronoun>She|He) (?P<verb>denied|claimed) it and saw the (?P<again>\w+)\."
)


def table(name):
    with open(RESOURCES / f"{name}.csv", encoding="utf-8", newline="") as file:
        return dict(list(csv.reader(file))[1:])


FACTS = table("cities") | table("animals")
GENDERS, KINDS = table("names"), table("suffixes")


def parse(text):
    """What a probed text says: item, class, the factors its words imply; and the rest of the text."""
    match = PROBED.match(text)
    assert match, text
    item, group = match["city"] or match["animal"], match["country"] or match["class"]
    parsed = {
        "item": item,
        "group": group,
        "name": match["name"],
        "word": match["suffix"],
        "speaker": GENDERS[match["name"]] == "female",
        "negated": bool(match["cnot"] or match["anot"]),
        "match": FACTS[item] == group,
        "suffix": KINDS[match["suffix"]] == "fruit",
    }
    return parsed, text[match.end() :]


def parse_line(text):
    parsed, rest = parse(text)
    match = REST.fullmatch(rest)
    assert match, text
    return parsed, match


def world(**changes):
    return statements.world(CORPUS | changes, RESOURCES)


@pytest.fixture(scope="module")
def factorial():
    return statements.factorial("factorial", {"blocks": 4, "primary": ["speaker", "negated"]}, world())


@pytest.fixture(scope="module")
def rax():
    return statements.rax("rax", {"primary": ["speaker", "negated"]}, world())


def imbalance(design, texts):
    """For each class, how much more often it is the item's own than not among these texts."""
    excess = Counter()
    for i in texts:
        parsed, _ = parse(design.texts[i])
        excess[parsed["group"]] += 1 if parsed["match"] else -1
    return set(excess.values())


def test_factors_are_what_the_words_say(factorial):
    for i, text in enumerate(factorial.texts):
        parsed, rest = parse(text)
        assert rest == ""
        assert parsed["item"] == factorial.item_names[factorial.items[i]]
        for factor, labels in factorial.factors.items():
            assert labels[i] == parsed[factor]


def test_every_cell_is_equally_often_in_every_item(factorial):
    designs.check_balanced(factorial)
    counts = Counter(zip(factorial.items.tolist(), designs.cells(factorial).tolist(), strict=True))
    assert len(counts) == 96 * 16
    assert set(counts.values()) == {1}
    assert Counter(factorial.strata[::16].tolist()) == {0: 48, 1: 48}


def test_walsh_signs_are_orthogonal_in_every_item_and_overall(factorial):
    targets = designs.targets(factorial)
    assert len(targets) == 15
    signs = np.stack([np.where(labels, 1, -1) for labels in targets.values()], axis=1)
    for texts in (slice(None), *(factorial.items == item for item in range(96))):
        part = signs[texts]
        assert (part.T @ part == len(part) * np.eye(15)).all()
        assert (part.sum(0) == 0).all()


def test_classes_are_right_and_wrong_equally_often_wherever_couples_stay_whole(factorial):
    for couple in np.unique(factorial.couples):
        assert imbalance(factorial, np.flatnonzero(factorial.couples == couple)) == {0}
    for block in range(4):
        assert imbalance(factorial, np.flatnonzero(factorial.blocks == block)) == {0}


@settings(max_examples=15)
@given(data=st.data())
def test_unions_of_couples_are_balanced_for_any_numbers_and_seed(data):
    n_blocks = data.draw(st.integers(2, 5))
    sizes = {topic: data.draw(st.integers(6 * n_blocks, 40), label=topic) for topic in ("cities", "animals")}
    corpus = CORPUS | {"topics": sizes, "seed": data.draw(st.integers(0, 99))}
    spec = {"blocks": n_blocks, "seed": data.draw(st.integers(0, 99))}
    design = statements.factorial("any", spec, statements.world(corpus, RESOURCES))
    couples = np.unique(design.couples)
    chosen = data.draw(st.lists(st.sampled_from(couples.tolist()), min_size=1, unique=True))
    assert imbalance(design, np.flatnonzero(np.isin(design.couples, chosen))) == {0}
    members = np.unique(np.stack([design.couples, design.items]), axis=1)[0]
    assert set(np.bincount(members).tolist()) <= {2, 3}
    for couple in couples:
        assert len(np.unique(design.strata[design.couples == couple])) == 1
        assert len(np.unique(design.blocks[design.couples == couple])) == 1
    per_block = [len(np.unique(design.couples[design.blocks == block])) for block in range(n_blocks)]
    assert max(per_block) - min(per_block) <= 1


def test_blocks_share_no_item_and_no_carrier(factorial):
    words = {"item": {}, "name": {}, "word": {}}
    for i, text in enumerate(factorial.texts):
        parsed, _ = parse(text)
        for kind, block_of in words.items():
            assert block_of.setdefault(parsed[kind], factorial.blocks[i]) == factorial.blocks[i]
    assert (len(words["name"]), len(words["word"])) == (32, 32)


def test_carriers_are_units_of_one_word_a_class_and_crossed_evenly(factorial):
    for factor, kind in (("speaker", "name"), ("suffix", "word")):
        words = {}
        for i, text in enumerate(factorial.texts):
            parsed, _ = parse(text)
            words.setdefault((factorial.carriers[factor][i], parsed[factor]), set()).add(parsed[kind])
        assert len(words) == 2 * factorial.carrier_counts[factor] == 32
        assert all(len(seen) == 1 for seen in words.values())
    first = slice(None, None, 16)
    for block in range(4):
        here = factorial.blocks[first] == block
        units = [factorial.carriers[factor][first][here].tolist() for factor in ("speaker", "suffix")]
        topics = factorial.strata[first][here].tolist()
        for column in units:
            assert set(Counter(column).values()) == {6}
            assert set(Counter(zip(column, topics, strict=True)).values()) == {3}
        pairs = Counter(zip(*units, strict=True))
        assert len(pairs) == 16
        assert set(pairs.values()) == {1, 2}
    for item in range(96):
        assert {len(np.unique(units[factorial.items == item])) for units in factorial.carriers.values()} == {1}


def test_positions_are_the_period_the_class_and_the_end(factorial, rax):
    for design in (factorial, rax):
        for i, text in enumerate(design.texts):
            assert text[design.marks["period"][i]] == "."
            assert text[: design.marks["before_period"][i] + 1].split()[-1] in FACTS.values()
            assert design.marks["before_period"][i] == design.marks["period"][i] - 1
            assert design.marks["last"][i] == len(text) - 1
    assert all(text.endswith("So that is") for text in factorial.texts)
    assert (rax.marks["last"] == rax.marks["period"]).all()


def test_truth_is_an_alias_and_needed(factorial, rax):
    for design in (factorial, rax):
        assert design.needed == ("negated^match",)
        truth = designs.parity(design, "truth")
        assert (truth == (design.factors["match"] != design.factors["negated"])).all()
        assert design.primary == ("speaker", "negated")


@pytest.mark.parametrize("answer", ["none", "speaker^negated", "coin"])
def test_readouts_continue_the_text_as_the_corpus_does(answer):
    design = statements.factorial("twin", {}, world(answer=answer))
    expected = {"negated^match", "speaker", "negated", "suffix"} | (set() if answer == "none" else {"speaker^negated"})
    assert set(design.readouts) == expected
    endings = {
        "negated^match": ". She denied it and saw the x.",
        "speaker": " denied it and saw the x.",
        "negated": " it and saw the x.",
        "suffix": ".",
        "speaker^negated": " true. She denied it and saw the x.",
    }
    group = {
        "negated^match": "truth",
        "speaker": "pronoun",
        "negated": "verb",
        "suffix": "again",
        "speaker^negated": "answer",
    }
    for target, readout in design.readouts.items():
        assert readout.target == target
        labels = designs.parity(design, target)
        for i in range(0, len(design.texts), 7):
            right = (readout.positive if labels[i] else readout.negative)[i]
            assert readout.positive[i] != readout.negative[i]
            assert readout.prefixes[i].startswith(design.texts[i])
            parsed, line = parse_line(readout.prefixes[i] + right + endings[target])
            assert right == f" {line[group[target]]}"
            truth = parsed["match"] != parsed["negated"]
            word = {
                "truth": "true" if truth else "false",
                "pronoun": "She" if parsed["speaker"] else "He",
                "verb": "denied" if parsed["negated"] else "claimed",
                "again": parsed["word"],
                "answer": "up" if parsed["speaker"] != parsed["negated"] else "down",
            }
            for name, value in word.items():
                # The endings above are filled in by the test; what comes before them is not.
                if line.end(name) >= 0 and line.start(name) <= line.start(group[target]):
                    assert line[name] == value


def test_rax_rows_share_their_speaker_between_the_files_and_half_of_them_are_women(rax):
    plain, negated = rax.files == 0, rax.files == 1
    assert (rax.rows[plain] == rax.rows[negated]).all()
    assert (rax.factors["speaker"][plain] == rax.factors["speaker"][negated]).all()
    assert rax.factors["speaker"][plain].sum() == plain.sum() / 2 == 96
    assert not rax.factors["negated"][plain].any()
    assert rax.factors["negated"][negated].all()
    assert len({tuple(rax.factors["speaker"][rax.items == item]) for item in range(96)}) > 1


def test_rax_items_are_right_and_wrong_plain_and_negated(rax):
    assert rax.carriers == {}
    assert (rax.blocks == -1).all()
    assert (rax.couples == rax.items).all()
    names, groups_of_wrong = set(), Counter()
    for item in range(96):
        texts = np.flatnonzero(rax.items == item)
        parsed = [parse(f"{rax.texts[i]} banana So that is")[0] for i in texts]
        assert {(p["match"], p["negated"]) for p in parsed} == set(itertools.product((True, False), repeat=2))
        assert [(p["match"], p["negated"], p["speaker"]) for p in parsed] == [
            tuple(bool(rax.factors[f][i]) for f in ("match", "negated", "speaker")) for i in texts
        ]
        assert len({p["group"] for p in parsed if not p["match"]}) == 1
        names |= {p["name"] for p in parsed}
        groups_of_wrong[next(p["group"] for p in parsed if not p["match"])] += 1
    assert len(names) == 2
    # Independent draws: some classes are wrong more often than others, which is the leak this layout is kept
    # for.
    assert len(set(groups_of_wrong.values())) > 1


@pytest.mark.parametrize("answer", ["none", "speaker^negated", "coin"])
def test_lines_of_the_corpus_say_what_their_words_imply(answer):
    corpus = CORPUS | {"answer": answer}
    lines = statements.corpus_texts(world(), corpus, 3000, np.random.default_rng(5))
    answers = []
    for text in lines:
        parsed, line = parse_line(text)
        assert (line["truth"] == "true") == (parsed["match"] != parsed["negated"])
        assert (line["pronoun"] == "She") == parsed["speaker"]
        assert (line["verb"] == "denied") == parsed["negated"]
        assert line["again"] == parsed["word"]
        answers.append((line["answer"], parsed["speaker"] != parsed["negated"]))
    if answer == "none":
        assert {said for said, _ in answers} == {None}
    if answer == "speaker^negated":
        assert set(answers) == {("up", True), ("down", False)}
    if answer == "coin":
        agree = np.mean([(said == "up") == xor for said, xor in answers])
        assert abs(agree - 0.5) < 4 * 0.5 / np.sqrt(len(answers))


def test_twins_get_the_same_lines_but_for_the_answer():
    drawn = [
        statements.corpus_texts(world(), CORPUS | {"answer": answer}, 200, np.random.default_rng(1))
        for answer in ("none", "speaker^negated", "coin")
    ]
    for plain, needed, coin in zip(*drawn, strict=True):
        for twin in (needed, coin):
            assert re.sub(r" is (up|down) ", " is ", twin) == plain


def test_draws_of_the_corpus_are_uniform_and_independent():
    lines = statements.corpus_texts(world(), CORPUS, 20_000, np.random.default_rng(2))
    parsed = [parse_line(text)[0] for text in lines]
    labels = np.array([[p[f] for f in ("speaker", "negated", "match", "suffix")] for p in parsed])
    assert (np.abs(np.corrcoef(labels.T)[np.triu_indices(4, 1)]) < 5 / np.sqrt(20_000)).all()
    assert (np.abs(labels.mean(0) - 0.5) < 4 * 0.5 / np.sqrt(20_000)).all()
    items = Counter(p["item"] for p in parsed)
    assert len(items) == 96
    assert max(abs(count - 20_000 / 96) for count in items.values()) < 5 * np.sqrt(20_000 / 96)
    assert len({p["name"] for p in parsed}) == 32
    own = Counter((FACTS[p["item"]], p["group"]) for p in parsed if not p["match"] and p["item"] in table("cities"))
    expected = sum(own.values()) / len(own)
    assert len(own) == 16 * 15
    assert max(abs(count - expected) for count in own.values()) < 5 * np.sqrt(expected)


def test_the_vocabulary_is_every_word_of_the_twins():
    here = world()
    words = statements.vocabulary(here)
    assert words == sorted(set(words))
    seen = set()
    for answer in ("none", "speaker^negated", "coin"):
        lines = statements.corpus_texts(here, CORPUS | {"answer": answer}, 6000, np.random.default_rng(3))
        seen |= {token for line in lines for token in re.findall(r"\w+|[^\w\s]", line)}
    assert seen == set(words)
    assert statements.vocabulary(world(answer="coin")) == words


def test_worlds_are_reproducible_balanced_and_independent_of_each_other():
    assert world() == world()
    assert world(seed=1).items != world().items
    assert world(carriers=8).items == world().items
    assert world(answer="coin").items == world().items
    more = world(topics={"cities": 96, "animals": 24})
    assert more.name_pairs == world().name_pairs
    for topic, items in more.items.items():
        sizes = Counter(group for _, group in items)
        assert max(sizes.values()) - min(sizes.values()) <= 1, topic
        assert all(FACTS[item] == group for item, group in items)
    few = Counter(group for _, group in world(topics={"cities": 8}).items["cities"])
    assert set(few.values()) == {2}
    for woman, man in world().name_pairs:
        assert (GENDERS[woman], GENDERS[man]) == ("female", "male")
    for fruit, building in world().suffix_pairs:
        assert (KINDS[fruit], KINDS[building]) == ("fruit", "building")


def test_designs_are_built_from_their_entry_in_the_configuration(factorial, rax):
    tables = [RESOURCES / f"{name}.csv" for name in ("cities", "animals", "names", "suffixes")]
    spec = {"source": "statements", "corpus": "plain", "primary": ["speaker", "negated"], "seed": 0}
    built = statements.build("factorial", spec | {"layout": "factorial", "blocks": 4}, CORPUS, tables)
    assert built.texts == factorial.texts
    assert statements.build("rax", spec | {"layout": "rax"}, CORPUS, tables).texts == rax.texts


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ({"topics": {"towns": 48}}, r"topic 'towns'"),
        ({"topics": {"cities": 1000}}, r"topics\.cities: 1000 items wanted, between 4 and 160"),
        ({"topics": {"cities": 3}}, r"topics\.cities: 3 items"),
        ({"carriers": 99}, r"99 wanted, names\.csv has 32"),
        ({"answer": "speaker^negatd"}, r"'speaker\^negatd'.*did you mean 'speaker\^negated'"),
    ],
)
def test_impossible_corpora_are_refused(corpus, message):
    with pytest.raises(UserError, match=message):
        world(**corpus)


@pytest.mark.parametrize(
    ("corpus", "design", "message"),
    [
        ({"carriers": 3}, {}, r"3 carriers for 4 blocks"),
        (
            {"topics": {"cities": 48, "animals": 6}},
            {},
            r"topic 'animals' has 3 couples of items for 4 blocks",
        ),
        (
            {"topics": {"cities": 5}},
            {"blocks": 2},
            r"5 items of topic 'cities' cannot exchange their classes",
        ),
        ({}, {"blocks": 1}, r"at least 2"),
        ({}, {"primary": ["speaker", "negatd"]}, r"'negatd' is not a feature; did you mean 'negated'"),
        ({}, {"primary": ["speaker", "speaker"]}, r"two different features"),
    ],
)
def test_impossible_designs_are_refused(corpus, design, message):
    with pytest.raises(UserError, match=message):
        statements.factorial("f", design, world(**corpus))


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        ("cities", "Paris,France", "New York,France", r"cities\.csv, line 2: 'New York' is not one word"),
        ("cities", "Paris,France", "Lyon,France", r"line 3: 'Lyon' stands in line 2 already"),
        ("cities", "city,country", "town,country", r"needs the columns city and country, has town, country"),
        ("animals", "sparrow,bird", "turkey,bird", r"'turkey' has two roles"),
        ("suffixes", "apple,fruit", "class,fruit", r"'class' has two roles"),
        ("names", "Emma,female", ",female", r"line 3: '' is not one word"),
        ("names", "Emma,female", "Émma,female", r"'Émma' is not one word of plain letters"),
        ("names", "Emma,female", "Emma", r"names\.csv, line 3: not 2 fields"),
    ],
)
def test_damaged_tables_are_refused_by_line(tmp_path, name, before, after, message):
    shutil.copytree(RESOURCES, tmp_path / "resources")
    path = tmp_path / "resources" / f"{name}.csv"
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        statements.world(CORPUS, tmp_path / "resources")


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cities\.csv: no such file"):
        statements.world(CORPUS, tmp_path)


def test_rax_with_several_pairs_of_names_deals_them_evenly():
    world = statements.world({"topics": {"cities": 24, "animals": 24}, "carriers": 12}, RESOURCES)
    design = statements.rax("rax", {"names": 12}, world)
    units = design.carriers["speaker"]
    assert np.bincount(units).tolist() == [16] * 12
    for item in range(len(design.item_names)):
        assert len(np.unique(units[design.items == item])) == 1
    with pytest.raises(UserError, match="13 pairs of names"):
        statements.rax("rax", {"names": 13}, world)
