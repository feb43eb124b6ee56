"""Statements about cities and animals: designs for probing, and the corpus a model of them is trained on.

One grammar for both. The probed text, and what follows it in the corpus after the bar:

    Alice: The city of Paris is not in the country Italy. banana So that is
        | true. She denied it and saw the banana.
    Bob: The kind of sparrow is in the class bird. shed So that is
        | true. He claimed it and saw the shed.

Factors are `speaker` (a woman's or a man's name), `negated`, `match` (the class is the item's own) and
`suffix` (a fruit or a building). truth = match XOR negated is what "So that is" asks for: a model of this
corpus HAS to compute it, and nothing ever asks for speaker XOR negated. Every factor has a later word that
depends on it, a behavioural read-out. Twin corpora have one more word, right after the probed text: "So that
is up true." or "So that is down true.", which is speaker XOR negated in one twin and a coin in the other: the
same target needed here and needless there, at the token that is read. Later in the line it would be no test:
She and denied have been said by then, and their XOR can be computed from them.

Wrong classes. `factorial` couples items of different classes by two or three, and the items of a couple
exchange their classes: every class is then equally often right and wrong in every couple, so in every fold.
With independent draws it is not, and a representation that merely knows the country reads `match` off chance.
`rax` is the layout of Marks 2024 (https://www.lesswrong.com/posts/hjJXCn9GsskysDceS; datasets of
github.com/saprmarks/geometry-of-truth, branch rax), generated anew, with its independent draws: four texts an
item, and one draw of the speaker that a row of the plain file shares with the same row of the negated file.
Keep it for the leak it has.

Pitfalls: texts of the factorial design are exactly balanced, lines of the corpus are independent draws; a
model's vocabulary must hold the words of both twins, or the twins' initial weights differ.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from counterprobe import designs
from counterprobe.designs import Design, ReadOut
from counterprobe.progress import UserError, nearest

FACTORS = ("speaker", "negated", "match", "suffix")
TRUTH = "negated^match"
TWIN = "speaker^negated"
PRIMARY = ("speaker", "negated")
ANSWERS = ("none", TWIN, "coin")
# What a target is called when False and when True, with the space that comes before it in running text.
WORDS = {TRUTH: (" false", " true"), "speaker": (" He", " She"), "negated": (" claimed", " denied")}
ANSWER_WORDS = (" down", " up")


@dataclass(frozen=True)
class Topic:
    """Where the items of a topic stand, and what is said of them."""

    table: str
    item: str
    group: str
    sentence: str


TOPICS = {
    "cities": Topic("cities.csv", "city", "country", "The city of {item} is{negation} in the country {group}."),
    "animals": Topic("animals.csv", "animal", "class", "The kind of {item} is{negation} in the class {group}."),
}


@dataclass(frozen=True)
class World:
    """What the texts of one corpus are about.

    items: topic -> (item, its class), in a random order. Pairs: (woman's name, man's name) and (fruit,
    building); pair j is carrier unit j of speaker and suffix. answer: what the extra word of the corpus
    depends on (`ANSWERS`).
    """

    items: dict[str, tuple[tuple[str, str], ...]]
    name_pairs: tuple[tuple[str, str], ...]
    suffix_pairs: tuple[tuple[str, str], ...]
    answer: str = "none"


def build(
    name: str, design: Mapping[str, Any], corpus: Mapping[str, Any] | None, tables: Sequence[str | Path]
) -> Design:
    """The design of one entry of the configuration, generated from `tables` or read from csv files.

    Paths of csv files are relative to the working directory. Raises UserError as the functions below do.
    """
    if design["source"] == "csv":
        return designs.from_csv(name, design, Path())
    return LAYOUTS[design["layout"]](name, design, world(corpus, Path(tables[0]).parent))


def world(corpus: Mapping[str, Any], resources: str | Path) -> World:
    """Draw items and carriers for a corpus.

    `corpus`: {topics: {cities: 48, animals: 48}, classes: 8, carriers: 16, answer: none, seed: 0}. Items are
    drawn from at most `classes` classes of each topic, as equal a number of each as the tables allow and at
    least two of a class; `carriers` is the number of name pairs and of suffix pairs. Equal seeds give equal
    worlds; the answer changes nothing else. Raises UserError where a table is malformed or too small, or a
    word has two roles.
    """
    resources = Path(resources)
    seed = int(corpus.get("seed", 0))
    answer = corpus.get("answer", "none")
    if answer not in ANSWERS:
        raise UserError(f"corpus answer '{answer}' is unknown{nearest(answer, ANSWERS)}; choose of {ANSWERS}")
    for topic in corpus["topics"]:
        if topic not in TOPICS:
            raise UserError(f"corpus topic '{topic}' is unknown{nearest(topic, TOPICS)}; choose of {[*TOPICS]}")
    tables = {
        topic: _table(resources / TOPICS[topic].table, TOPICS[topic].item, TOPICS[topic].group) for topic in TOPICS
    }
    names = _table(resources / "names.csv", "name", "gender")
    suffixes = _table(resources / "suffixes.csv", "word", "kind")
    _refuse_second_roles(tables, names, suffixes)
    # A generator for each purpose: more cities must not change the names.
    rng = {use: np.random.default_rng([seed, i]) for i, use in enumerate(("names", "suffixes", *TOPICS))}
    n = int(corpus["carriers"])
    most_classes = int(corpus.get("classes", 16))
    return World(
        items={
            topic: _draw_items(topic, tables[topic], int(k), most_classes, rng[topic])
            for topic, k in corpus["topics"].items()
        },
        name_pairs=_draw_pairs("names.csv", names, ("female", "male"), n, rng["names"]),
        suffix_pairs=_draw_pairs("suffixes.csv", suffixes, ("fruit", "building"), n, rng["suffixes"]),
        answer=answer,
    )


def factorial(name: str, design: Mapping[str, Any], world: World) -> Design:
    """Every factor crossed with every other within every item: 16 texts an item, by item and then by cell.

    Keys of `design`: `blocks` (default 4), `primary` (default speaker and negated), `seed` (default 0).
    Couples and carrier units are dealt to the blocks, couples topic by topic; an item has one name pair and
    one suffix pair of its block, and within a block items meet all combinations of the two equally often, as
    far as the numbers allow. Raises UserError where there are fewer couples of a topic, or fewer carriers,
    than blocks, or items cannot be coupled.
    """
    n_blocks = int(design.get("blocks", 4))
    rng = np.random.default_rng([int(design.get("seed", 0)), 0])
    topics, items, strata = _flat(world)
    if n_blocks < 2:
        raise UserError(f"design '{name}', blocks: {n_blocks}; cross-validation needs at least 2")
    if len(world.name_pairs) < n_blocks:
        raise UserError(
            f"design '{name}': {len(world.name_pairs)} carriers for {n_blocks} blocks; "
            "raise `carriers` of the corpus or lower `blocks`"
        )

    wrong = np.empty(len(items), dtype=object)
    couple_of, block_of = np.empty(len(items), np.int64), np.empty(len(items), np.int64)
    queues: list[list[int]] = [[] for _ in range(n_blocks)]
    n_couples = 0
    for stratum, topic in enumerate(topics):
        couples = _couple(name, topic, np.flatnonzero(strata == stratum), items, rng)
        if len(couples) < n_blocks:
            raise UserError(
                f"design '{name}': topic '{topic}' has {len(couples)} couples of items for {n_blocks} "
                "blocks; raise its number of items in the corpus or lower `blocks`"
            )
        for couple in couples:
            block = n_couples % n_blocks
            for item, giver in zip(couple, couple[1:] + couple[:1], strict=True):
                wrong[item] = items[giver][1]
                couple_of[item], block_of[item] = n_couples, block
            queues[block] += couple
            n_couples += 1

    n_units = len(world.name_pairs)
    name_units, suffix_units = rng.permutation(n_units), rng.permutation(n_units)
    name_of, suffix_of = np.empty(len(items), np.int64), np.empty(len(items), np.int64)
    for block, queue in enumerate(queues):
        units, others = name_units[block::n_blocks], suffix_units[block::n_blocks]
        for turn, item in enumerate(queue):
            name_of[item] = units[turn % units.size]
            # One step further in each round, so that a round meets other combinations than the one before.
            suffix_of[item] = others[(turn + turn // units.size) % units.size]

    n_cells = 2 ** len(FACTORS)
    item = np.repeat(np.arange(len(items)), n_cells)
    cell = np.tile(np.arange(n_cells), len(items))
    factors = {factor: (cell >> bit & 1).astype(bool) for bit, factor in enumerate(FACTORS)}
    lines = [
        Line(
            topic=topics[strata[i]],
            item=items[i][0],
            group=items[i][1] if match else wrong[i],
            speaker=world.name_pairs[name_of[i]][0 if speaker else 1],
            suffix=world.suffix_pairs[suffix_of[i]][0 if suffix else 1],
            factors=(speaker, negated, match, suffix),
            answer=None if world.answer == "none" else speaker != negated,
        )
        for i, speaker, negated, match, suffix in zip(
            item.tolist(), *map(np.ndarray.tolist, factors.values()), strict=True
        )
    ]
    fruits, buildings = zip(*(world.suffix_pairs[suffix_of[i]] for i in item), strict=True)
    return Design(
        name=name,
        texts=tuple(line.text for line in lines),
        items=item,
        item_names=tuple(word for word, _ in items),
        couples=couple_of[item],
        strata=strata[item],
        stratum_names=topics,
        factors=factors,
        carriers={"speaker": name_of[item], "suffix": suffix_of[item]},
        carrier_counts={"speaker": n_units, "suffix": n_units},
        blocks=block_of[item],
        rows=np.arange(item.size),
        files=np.zeros(item.size, dtype=np.int64),
        marks=_marks([line.opening for line in lines], [line.text for line in lines]),
        primary=designs.primary_pair(name, design.get("primary", PRIMARY), FACTORS),
        needed=(TRUTH,),
        aliases={TRUTH: "truth"},
        readouts=_readouts(lines, fruits, buildings, twin=world.answer != "none"),
    )


def rax(name: str, design: Mapping[str, Any], world: World) -> Design:
    """The published layout: each item right and wrong, plain and negated; one pair of names; no suffix.

    Keys of `design`: `primary` (default speaker and negated), `seed` (default 0). A row is an (item, match),
    a file is plain or negated; exactly half of the rows have a woman speaking, in both files alike. A wrong
    class is any other one. Texts end in the period, so `period` and `last` are the same token. There are no
    blocks and no carriers.
    """
    rng = np.random.default_rng([int(design.get("seed", 0)), 1])
    topics, items, strata = _flat(world)
    groups = _groups(world)
    wrong = []
    for i, (_, own) in enumerate(items):
        others = [group for group in groups[topics[strata[i]]] if group != own]
        wrong.append(others[rng.integers(len(others))])
    speaker_of_row = rng.permutation(np.arange(2 * len(items)) % 2 == 0)
    n_pairs = int(design.get("names", 1))
    if n_pairs > len(world.name_pairs):
        raise UserError(
            f"design '{name}': {n_pairs} pairs of names, but its corpus has {len(world.name_pairs)}; lower names"
        )
    pair_of_item = deal_names(speaker_of_row, n_pairs, rng)

    row = np.tile(np.arange(2 * len(items)), 2)
    item = row // 2
    file = np.repeat(np.arange(2), 2 * len(items))
    factors = {"speaker": speaker_of_row[row], "negated": file == 1, "match": row % 2 == 1}
    texts = []
    for i, speaker, negated, match in zip(item.tolist(), *map(np.ndarray.tolist, factors.values()), strict=True):
        word, own = items[i]
        said = sentence(topics[strata[i]], word, own if match else wrong[i], negated)
        woman, man = world.name_pairs[pair_of_item[i]]
        texts.append(f"{woman if speaker else man}: {said}")
    return Design(
        name=name,
        texts=tuple(texts),
        items=item,
        item_names=tuple(word for word, _ in items),
        couples=item,
        strata=strata[item],
        stratum_names=topics,
        factors=factors,
        carriers={"speaker": pair_of_item[item]} if n_pairs > 1 else {},
        carrier_counts={"speaker": n_pairs} if n_pairs > 1 else {},
        blocks=np.full(item.size, -1, dtype=np.int64),
        rows=row,
        files=file,
        marks=_marks(texts, texts),
        primary=designs.primary_pair(name, design.get("primary", PRIMARY), factors),
        needed=(TRUTH,),
        aliases={TRUTH: "truth"},
        readouts={},
    )


def deal_names(
    speaker_of_row: Bool[np.ndarray, " rows"], n_pairs: int, rng: np.random.Generator
) -> Int[np.ndarray, " items"]:
    """Pair of names of each item of the published layout (two rows an item), each pair with both speakers equally often.

    Half of all rows have either speaker. Were one pair to have more, the others would have fewer: a fold that holds
    that pair out leans away from what it was trained on, and every XOR with speaker falls below one half.
    """
    women = speaker_of_row.reshape(-1, 2).sum(axis=1)
    pair = np.empty(len(women), dtype=np.int64)
    for twice in (0, 2):
        # As many items have a man twice as a woman twice: dealt alike, they make up for each other in every pair.
        members = rng.permutation(np.flatnonzero(women == twice))
        pair[members] = np.arange(len(members)) % n_pairs
    count = np.bincount(pair[women != 1], minlength=n_pairs)
    for item in rng.permutation(np.flatnonzero(women == 1)):
        pair[item] = count.argmin()
        count[pair[item]] += 1
    return pair


LAYOUTS = {"factorial": factorial, "rax": rax}


def corpus_texts(world: World, corpus: Mapping[str, Any], n: int, rng: np.random.Generator) -> list[str]:
    """`n` independent lines for training.

    Item, factors, name and suffix word are uniform, a wrong class is uniform among the topic's others. Names
    and suffix words are drawn singly, not in pairs. `corpus["answer"]` adds the twins' word; the
    coin is tossed whatever it says, so that equal generators give equal lines up to it.
    """
    answer = corpus.get("answer", "none")
    topics, items, strata = _flat(world)
    groups = _groups(world)
    item = rng.integers(len(items), size=n)
    bits = rng.integers(2, size=(n, len(FACTORS))).astype(bool)
    unit = rng.integers(len(world.name_pairs), size=n)
    word = rng.integers(len(world.suffix_pairs), size=n)
    other = rng.random(n)
    coin = rng.integers(2, size=n).astype(bool)
    texts = []
    for k, i in enumerate(item.tolist()):
        speaker, negated, match, suffix = bits[k].tolist()
        topic, (name, group) = topics[strata[i]], items[i]
        if not match:
            others = groups[topic]
            # The last class stands in for the item's own: uniform over the others, and no list for each line.
            drawn = others[int(other[k] * (len(others) - 1))]
            group = others[-1] if drawn == group else drawn
        line = Line(
            topic=topic,
            item=name,
            group=group,
            speaker=world.name_pairs[unit[k]][0 if speaker else 1],
            suffix=world.suffix_pairs[word[k]][0 if suffix else 1],
            factors=(speaker, negated, match, suffix),
            answer=None if answer == "none" else bool(coin[k]) if answer == "coin" else speaker != negated,
        )
        texts.append(line.full)
    return texts


def vocabulary(world: World) -> list[str]:
    """Every word and punctuation mark of the corpus and its twins, sorted."""
    example = Line("cities", "", "", "", "", (True, True, True, True), answer=True)
    opposite = Line("animals", "", "", "", "", (False, False, True, False), answer=False)
    words = set(f"{example.full} {opposite.full}".replace(".", " . ").replace(":", " : ").split())
    words |= {WORDS[TRUTH][0].strip()}
    for pairs in (world.name_pairs, world.suffix_pairs, *world.items.values()):
        words |= {word for pair in pairs for word in pair}
    return sorted(words)


def sentence(topic: str, item: str, group: str, negated: bool) -> str:
    """The statement itself, with its period."""
    return TOPICS[topic].sentence.format(item=item, group=group, negation=" not" if negated else "")


@dataclass(frozen=True)
class Line:
    """One line of the corpus: its words, the factors (in the order of `FACTORS`) they realise, a twin's answer."""

    topic: str
    item: str
    group: str
    speaker: str
    suffix: str
    factors: tuple[bool, bool, bool, bool]
    answer: bool | None

    @property
    def truth(self) -> bool:
        return self.factors[1] != self.factors[2]

    @property
    def opening(self) -> str:
        """Up to the period of the statement."""
        return f"{self.speaker}: {sentence(self.topic, self.item, self.group, self.factors[1])}"

    @property
    def text(self) -> str:
        """The part that is probed."""
        return f"{self.opening} {self.suffix} So that is"

    def upto(self, target: str) -> str:
        """The line up to the word that answers `target` (a canonical parity), without it."""
        if target == TWIN:
            return self.text
        line = self.text if self.answer is None else f"{self.text}{ANSWER_WORDS[self.answer]}"
        if target == TRUTH:
            return line
        line += f"{WORDS[TRUTH][self.truth]}."
        if target == "speaker":
            return line
        line += WORDS["speaker"][self.factors[0]]
        if target == "negated":
            return line
        return f"{line}{WORDS['negated'][self.factors[1]]} it and saw the"

    @property
    def full(self) -> str:
        """The whole line."""
        return f"{self.upto('suffix')} {self.suffix}."


def _readouts(
    lines: Sequence[Line], fruits: Sequence[str], buildings: Sequence[str], *, twin: bool
) -> dict[str, ReadOut]:
    """Both twins get the read-out of the XOR, the coin's too: what is needless there must not show in it."""
    n = len(lines)
    words = {target: ((true,) * n, (false,) * n) for target, (false, true) in WORDS.items()}
    words["suffix"] = (
        tuple(f" {fruit}" for fruit in fruits),
        tuple(f" {building}" for building in buildings),
    )
    if twin:
        words[TWIN] = ((ANSWER_WORDS[True],) * n, (ANSWER_WORDS[False],) * n)
    return {
        target: ReadOut(target, tuple(line.upto(target) for line in lines), positive, negative)
        for target, (positive, negative) in words.items()
    }


def _marks(openings: Sequence[str], texts: Sequence[str]) -> dict[str, np.ndarray]:
    period = np.array([len(opening) - 1 for opening in openings], dtype=np.int64)
    last = np.array([len(text) - 1 for text in texts], dtype=np.int64)
    return {"period": period, "before_period": period - 1, "last": last}


def _flat(world: World) -> tuple[tuple[str, ...], list[tuple[str, str]], np.ndarray]:
    """Topics, the items of all of them in one list, and the index of each item's topic."""
    topics = tuple(world.items)
    items = [pair for topic in topics for pair in world.items[topic]]
    strata = np.repeat(np.arange(len(topics)), [len(world.items[topic]) for topic in topics])
    return topics, items, strata


def _groups(world: World) -> dict[str, list[str]]:
    return {topic: sorted({group for _, group in items}) for topic, items in world.items.items()}


def _couple(
    name: str, topic: str, members: np.ndarray, items: Sequence[tuple[str, str]], rng: np.random.Generator
) -> list[list[int]]:
    """Random couples of items whose classes all differ, in random order; a threesome where the number is odd.

    Takes from the largest class first: then a partner can always be found, unless one class has more than
    half of all.
    """
    queues: dict[str, list[int]] = {}
    for item in rng.permutation(members).tolist():
        queues.setdefault(items[item][1], []).append(item)
    largest = max(queues, key=lambda group: len(queues[group]))
    odd = len(members) % 2
    if 2 * len(queues[largest]) > len(members) - odd or len(queues) < 2 + odd:
        raise UserError(
            f"design '{name}': the {len(members)} items of topic '{topic}' cannot exchange their classes, "
            f"since {len(queues[largest])} are in '{largest}'; raise the topic's number of items in the "
            "corpus, or make it even"
        )
    couples = []
    while queues:
        # Ties fall at random, or classes would meet in the order of the table.
        ranked = sorted(rng.permutation(sorted(queues)).tolist(), key=lambda group: -len(queues[group]))
        left = sum(map(len, queues.values()))
        chosen = ranked[:3] if left % 2 else ranked[:1]
        if len(chosen) == 1:
            rest = ranked[1:]
            # A class that is half of what is left has to be used now; else all items are equally likely.
            weights = np.array([len(queues[group]) for group in rest], dtype=float)
            forced = 2 * weights[0] == left
            chosen.append(rest[0] if forced else rest[rng.choice(len(rest), p=weights / weights.sum())])
        couples.append([queues[group].pop() for group in chosen])
        queues = {group: queue for group, queue in queues.items() if queue}
    return [couples[i] for i in rng.permutation(len(couples))]


def _table(path: Path, word: str, kind: str) -> list[tuple[str, str]]:
    """(word, kind) of every row. Raises UserError unless they are single words, none of them twice."""
    rows = []
    first: dict[str, int] = {}
    for line, record in designs.read_rows(path):
        if word not in record or kind not in record:
            raise UserError(f"{path}: needs the columns {word} and {kind}, has {', '.join(record)}; add them")
        pair = (record[word], record[kind])
        for value in pair:
            if not (value.isalpha() and value.isascii()):
                raise UserError(f"{path}, line {line}: '{value}' is not one word of plain letters; replace it")
        if pair[0] in first:
            raise UserError(f"{path}, line {line}: '{pair[0]}' stands in line {first[pair[0]]} already; remove one")
        first[pair[0]] = line
        rows.append(pair)
    return rows


def _refuse_second_roles(tables: Mapping[str, Sequence[tuple[str, str]]], *words: Sequence[tuple[str, str]]) -> None:
    """A word in two roles (the country and the bird) would tie two features to one embedding."""
    roles = [word for table in tables.values() for word, _ in table]
    roles += [group for table in tables.values() for group in sorted({group for _, group in table})]
    roles += [word for table in words for word, _ in table]
    grammar = {word.lower() for word in vocabulary(World({}, (), ()))}
    counts = Counter(word.lower() for word in roles) + Counter(grammar)
    twice = [word for word, count in counts.items() if count > 1]
    if twice:
        raise UserError(f"'{twice[0]}' has two roles in the tables of workflow/resources; remove one of them")


def _draw_items(
    topic: str, table: Sequence[tuple[str, str]], n: int, most_classes: int, rng: np.random.Generator
) -> tuple[tuple[str, str], ...]:
    """`n` items dealt class by class: none has two more than another unless the table runs out of it."""
    queues: dict[str, list[str]] = {}
    for index in rng.permutation(len(table)):
        word, group = table[index]
        queues.setdefault(group, []).append(word)
    usable = sorted(group for group, queue in queues.items() if len(queue) >= 2)
    groups = [usable[i] for i in rng.permutation(len(usable))[: max(2, min(n // 2, most_classes))]]
    available = sum(len(queues[group]) for group in groups)
    if not 4 <= n <= available:
        raise UserError(f"corpus topics.{topic}: {n} items wanted, between 4 and {available} can be had; correct it")
    dealt = [
        (queues[group][turn], group)
        for turn in range(max(len(queues[group]) for group in groups))
        for group in groups
        if turn < len(queues[group])
    ]
    return tuple(dealt[i] for i in rng.permutation(n))


def _draw_pairs(
    table: str, words: Sequence[tuple[str, str]], kinds: tuple[str, str], n: int, rng: np.random.Generator
) -> tuple[tuple[str, str], ...]:
    columns = []
    for kind in kinds:
        column = [word for word, its_kind in words if its_kind == kind]
        if not 1 <= n <= len(column):
            raise UserError(f"corpus carriers: {n} wanted, {table} has {len(column)} of kind '{kind}'; correct it")
        columns.append([column[i] for i in rng.permutation(len(column))[:n]])
    return tuple(zip(*columns, strict=True))
