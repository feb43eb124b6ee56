"""Folds hold out what they say: items, and under the protocol `carriers` names and words, too."""

import csv
import itertools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterprobe import designs, planted, splits, statements
from counterprobe.progress import UserError

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"


def corpus(cities=24, animals=24, carriers=8, seed=0):
    return {
        "topics": {"cities": cities, "animals": animals},
        "carriers": carriers,
        "answer": "none",
        "seed": seed,
    }


def build(layout, spec=None, **changes):
    return getattr(statements, layout)(layout, spec or {}, statements.world(corpus(**changes), RESOURCES))


@pytest.fixture(scope="module")
def factorial():
    return build("factorial")


def words_of(design, texts):
    """Names and suffix words, read from the texts themselves."""
    parts = [re.fullmatch(r"(\w+): .*\. (\w+) So that is", design.texts[i]).groups() for i in texts]
    return {name for name, _ in parts}, {word for _, word in parts}


def disjoint_parts(fold):
    """Every pair of index sets of a fold that must have nothing in common."""
    yield fold.train, fold.test
    yield from fold.inner


@settings(max_examples=15)
@given(data=st.data())
def test_folds_of_any_factorial_design(data):
    n_blocks = data.draw(st.integers(3, 5), label="blocks")
    seed = data.draw(st.integers(0, 50), label="seed")
    sizes = {topic: data.draw(st.integers(10, 16).map(lambda k: 2 * k), label=topic) for topic in ("cities", "animals")}
    design = build("factorial", {"blocks": n_blocks, "seed": seed}, carriers=n_blocks + 3, seed=seed, **sizes)
    protocol = data.draw(st.sampled_from(splits.PROTOCOLS), label="protocol")
    n_inner = data.draw(st.sampled_from([0, 2, n_blocks - 1]), label="inner")
    made = splits.folds(design, protocol, n_inner, n_folds=n_blocks, seed=seed)
    assert len(made) == n_blocks
    tested = Counter(int(i) for fold in made for i in fold.test)
    assert tested == Counter(range(len(design.texts)))
    for fold in made:
        assert fold.dropped == 0
        assert len(fold.inner) == n_inner
        assert len(fold.train) + len(fold.test) == len(design.texts)
        for one, other in disjoint_parts(fold):
            assert not set(design.couples[one]) & set(design.couples[other])
            assert not set(design.items[one]) & set(design.items[other])
            if protocol == "carriers":
                for left, right in zip(words_of(design, one), words_of(design, other), strict=True):
                    assert left
                    assert not left & right
        validated = np.concatenate([valid for _, valid in fold.inner] or [np.array([], int)])
        assert len(validated) == len(np.unique(validated))
        if n_inner:
            assert np.array_equal(np.sort(validated), fold.train)
            for train, valid in fold.inner:
                assert set(train) | set(valid) == set(fold.train)
        for part in (fold.train, fold.test, *itertools.chain(*fold.inner)):
            assert np.array_equal(part, np.sort(part))
            for labels in designs.targets(design).values():
                assert labels[part].mean() == 0.5


def test_item_folds_are_even_by_topic_and_share_names_across_blocks(factorial):
    for fold in splits.folds(factorial, "items", 3, n_folds=4):
        counts = Counter(factorial.strata[fold.test][::16].tolist())
        assert max(counts.values()) - min(counts.values()) <= 2
        assert set(factorial.blocks[fold.test]) == {0, 1, 2, 3}
        train, test = words_of(factorial, fold.train), words_of(factorial, fold.test)
        assert test[0] <= train[0]
        assert test[1] <= train[1]


def test_folds_depend_on_the_seed_alone(factorial):
    one, again, other = (splits.folds(factorial, "items", 2, n_folds=4, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a.test, b.test) for a, b in zip(one, again, strict=True))
    assert any(not np.array_equal(a.test, b.test) for a, b in zip(one, other, strict=True))


def test_inner_lots_cover_several_blocks_where_there_are_fewer_of_them(factorial):
    for fold in splits.folds(factorial, "carriers", 2):
        assert sorted(len(np.unique(factorial.blocks[valid])) for _, valid in fold.inner) == [1, 2]


def test_carriers_cannot_be_held_out_of_a_layout_without_any():
    rax = build("rax")
    with pytest.raises(splits.NotTestable, match="'rax' declares no carriers"):
        splits.folds(rax, "carriers", 0)
    assert issubclass(splits.NotTestable, UserError)
    for fold in splits.folds(rax, "items", 2, n_folds=4):
        assert not set(rax.items[fold.train]) & set(rax.items[fold.test])


def test_one_block_cannot_be_held_out(factorial):
    with pytest.raises(splits.NotTestable, match="one block"):
        splits.folds(replace(factorial, blocks=np.zeros_like(factorial.blocks)), "carriers", 0)


@pytest.fixture
def named(tmp_path):
    """A user's table: 12 items, each said warm and cold by each of 6 women and 6 men."""
    people = [*((f"Woman{k}", 1) for k in range(6)), *((f"Man{k}", 0) for k in range(6))]
    with open(tmp_path / "texts.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "item", "warm", "woman", "name"])
        for item, warm, (name, woman) in itertools.product(range(12), (0, 1), people):
            writer.writerow([f"{name}: item{item} is {'warm' if warm else 'cold'}.", item, warm, woman, name])
    spec = {"files": [{"path": "texts.csv"}], "text": "text", "group": "item", "carriers": {"woman": "name"}}
    spec |= {"features": {"warm": "warm", "woman": "woman"}, "primary": ["warm", "woman"]}
    return designs.from_csv("named", spec, tmp_path)


def test_declared_carriers_are_held_out_with_the_items_and_mixed_rows_are_counted(named):
    made = splits.folds(named, "carriers", 2, n_folds=3, seed=1)
    speakers = np.array([text.split(":")[0] for text in named.texts])
    tested = np.concatenate([fold.test for fold in made])
    assert len(tested) == len(np.unique(tested)) == len(named.texts) // 3
    for fold in made:
        assert len(fold.train) == len(named.texts) * 4 // 9
        assert len(fold.train) + len(fold.test) + fold.dropped == len(named.texts)
        for one, other in disjoint_parts(fold):
            assert not set(named.items[one]) & set(named.items[other])
            assert not set(speakers[one]) & set(speakers[other])
        for train, valid in fold.inner:
            assert set(train) <= set(fold.train)
            assert set(valid) <= set(fold.train)
        assert len({name for name in speakers[fold.test] if name.startswith("Woman")}) == 2
        assert len({name for name in speakers[fold.test] if name.startswith("Man")}) == 2


def test_pairs_of_carriers_are_dealt_as_pairs_where_there_are_no_blocks(factorial):
    loose = replace(factorial, blocks=np.full_like(factorial.blocks, -1))
    for fold in splits.folds(loose, "carriers", 0, n_folds=2):
        for left, right in zip(words_of(loose, fold.train), words_of(loose, fold.test), strict=True):
            assert not left & right


def test_too_few_carriers_for_the_folds_make_a_design_untestable(named):
    with pytest.raises(splits.NotTestable, match="6 carriers of one class of woman for 7 folds"):
        splits.folds(named, "carriers", 0, n_folds=7)


@pytest.mark.parametrize(
    ("protocol", "n_inner", "n_folds", "message"),
    [
        ("items", 0, 25, r"24 items \(whole couples\) for 25 folds"),
        ("items", 0, 1, r"1 folds; use at least 2"),
        ("items", 3, 3, r"3 inner folds, but only 2 of 3 groups"),
        ("carriers", 4, 4, r"4 inner folds, but only 3 of 4 groups"),
        ("items", 1, 4, r"1 inner folds; use 0 for none, or at least 2"),
        ("item", 0, 4, r"protocol 'item' has no folds"),
        ("published", 0, 4, r"published_split"),
    ],
)
def test_impossible_folds_are_refused(factorial, protocol, n_inner, n_folds, message):
    with pytest.raises(UserError, match=message):
        splits.folds(factorial, protocol, n_inner, n_folds=n_folds)


def test_a_target_of_one_class_in_a_fold_is_named_with_the_fold(factorial):
    """A factor that is True in one block only is constant in the other folds' test texts."""
    only = factorial.factors["speaker"] & (factorial.blocks == 2)
    rare = replace(factorial, factors=factorial.factors | {"speaker": only})
    with pytest.raises(
        UserError,
        match=r"'factorial', protocol carriers: target 'speaker' has only False in the test texts of fold 0",
    ):
        splits.folds(rare, "carriers", 0)


def test_published_rows_are_random_by_file_and_by_target():
    rax = build("rax", cities=48, animals=4)
    folds = [splits.published_split(rax, target, seed=0) for target in range(7)]
    for fold in folds:
        assert fold.inner == ()
        assert np.array_equal(np.sort(np.concatenate([fold.train, fold.test])), np.arange(len(rax.texts)))
        for file in (0, 1):
            of_file = rax.files == file
            assert np.isin(np.flatnonzero(of_file), fold.train).sum() == int(0.8 * of_file.sum())
        shared_items = set(rax.items[fold.train]) & set(rax.items[fold.test])
        assert len(shared_items) > 0.5 * len(set(rax.items[fold.test]))
        held = [set(rax.rows[fold.test][rax.files[fold.test] == file]) for file in (0, 1)]
        assert held[0] != held[1]
    assert len({tuple(fold.test) for fold in folds}) == 7
    assert np.array_equal(folds[3].test, splits.published_split(rax, 3, seed=0).test)
    assert not np.array_equal(folds[3].test, splits.published_split(rax, 3, seed=1).test)
    with pytest.raises(UserError, match="cannot be split"):
        splits.published_split(rax, 0, 0, train_share=0.001)


def test_folds_of_the_published_layout_have_as_many_of_either_speaker():
    design, _, _ = planted.layout(200, 10, 8, 0)
    # Four texts an item; a test part of few items and names has more left over that could not be dealt evenly.
    for protocol, tolerance in (("items", 0.02), ("carriers", 0.1)):
        for fold in splits.folds(design, protocol, 2):
            for part in (fold.train, fold.test):
                assert abs(design.factors["speaker"][part].mean() - 0.5) < tolerance
