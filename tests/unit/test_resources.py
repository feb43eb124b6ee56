"""The tracked tables hold what the statements need: plain single words, each in one role, and true facts."""

import csv
from collections import Counter, defaultdict
from pathlib import Path

import pytest

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
COLUMNS = {
    "cities": ("city", "country"),
    "animals": ("animal", "class"),
    "names": ("name", "gender"),
    "suffixes": ("word", "kind"),
}
# Given to women and men in English-speaking countries, or to both a person and a place or a thing in these
# tables.
AMBIGUOUS = {
    "alex",
    "sam",
    "chris",
    "kim",
    "pat",
    "taylor",
    "jordan",
    "casey",
    "robin",
    "leslie",
    "jamie",
    "morgan",
}
AMBIGUOUS |= {
    "florence",
    "sydney",
    "adelaide",
    "victoria",
    "charlotte",
    "austin",
    "paris",
    "mark",
    "rose",
    "grace",
}
# Cities of this name are well known in two countries.
SHARED_NAMES = {
    "valencia",
    "cordoba",
    "georgetown",
    "birmingham",
    "hyderabad",
    "granada",
    "tripoli",
    "merida",
}
SHARED_NAMES |= {"santiago", "alexandria", "salvador", "perth", "london", "cambridge", "guadalajara", "leon"}


def table(name):
    with open(RESOURCES / f"{name}.csv", encoding="ascii", newline="") as file:
        reader = csv.reader(file)
        assert tuple(next(reader)) == COLUMNS[name]
        return [tuple(row) for row in reader]


@pytest.mark.parametrize(
    ("name", "words", "kinds", "words_a_kind"),
    [("cities", 120, 12, 8), ("animals", 64, 6, 8), ("names", 48, 2, 24), ("suffixes", 48, 2, 24)],
)
def test_tables_are_large_enough(name, words, kinds, words_a_kind):
    rows = table(name)
    sizes = Counter(kind for _, kind in rows)
    assert len(rows) >= words
    assert len(sizes) >= kinds
    assert min(sizes.values()) >= words_a_kind


@pytest.mark.parametrize("name", COLUMNS)
def test_words_are_single_and_of_plain_letters(name):
    for row in table(name):
        assert len(row) == 2
        for word in row:
            assert word.isascii()
            assert word.isalpha()
    capitals = {word[0].isupper() for word, _ in table(name)}
    assert capitals == {name in ("cities", "names")}


def test_no_word_has_two_roles():
    roles = [word for name in COLUMNS for word, _ in table(name)]
    roles += [kind for name in ("cities", "animals") for kind in {kind for _, kind in table(name)}]
    roles += [
        "the",
        "city",
        "of",
        "is",
        "not",
        "in",
        "country",
        "kind",
        "class",
        "so",
        "that",
        "true",
        "false",
    ]
    roles += ["she", "he", "denied", "claimed", "it", "and", "saw"]
    roles += ["answer", "up", "down"]
    assert [word for word, count in Counter(word.lower() for word in roles).items() if count > 1] == []


def test_names_are_those_of_one_gender():
    assert {gender for _, gender in table("names")} == {"female", "male"}
    assert not AMBIGUOUS & {name.lower() for name, _ in table("names")}


def test_suffix_words_are_fruits_and_buildings():
    kinds = dict(table("suffixes"))
    assert set(kinds.values()) == {"fruit", "building"}
    assert (kinds["banana"], kinds["shed"]) == ("fruit", "building")


def test_cities_avoid_names_of_two_famous_places():
    assert not SHARED_NAMES & {city.lower() for city, _ in table("cities")}


def test_cities_are_in_the_country_that_geonames_says(shared):
    """The table of Marks and Tegmark was made from GeoNames: an oracle that nobody wrote from memory."""
    known = defaultdict(set)
    with open(shared / "data" / "truth_is_universal" / "cities.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            known[row["city"]].add(row["correct_country"])
    checked = [(city, country) for city, country in table("cities") if city in known]
    assert len(checked) >= 60
    assert [(city, country, known[city]) for city, country in checked if known[city] != {country}] == []
