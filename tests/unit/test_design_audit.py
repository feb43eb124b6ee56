import dataclasses
import io
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

from counterprobe import design_audit, designs, splits, statements
from counterprobe.progress import UserError

DATA = Path(__file__).parents[2] / ".." / "shared" / "data" / "truth_is_universal"


def made_world(n_items, n_pairs, n_classes=6):
    return statements.World(
        items={
            topic: tuple((f"{topic}{i}", f"{topic}class{i % n_classes}") for i in range(n_items))
            for topic in ("cities", "animals")
        },
        name_pairs=tuple((f"Ann{i}", f"Bob{i}") for i in range(n_pairs)),
        suffix_pairs=tuple((f"plum{i}", f"barn{i}") for i in range(n_pairs)),
    )


@pytest.fixture(scope="module")
def factorial():
    return statements.factorial("factorial", {"blocks": 4}, made_world(24, 16))


@pytest.fixture(scope="module")
def rax():
    return statements.rax("rax", {}, made_world(60, 1, n_classes=20))


def found(report, **wanted):
    rows = report.findings
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows.set_index("target")


def test_a_good_design_passes_and_says_what_it_can_detect(factorial):
    report = design_audit.audit(factorial)
    assert report.refused == ()
    report.refuse()
    additive = report.findings[report.findings["check"] == "additive"]
    # Eleven parities and match, under both protocols.
    assert len(additive) == 24
    assert (additive["value"] == 0.5).all()
    assert (report.findings.loc[report.findings["check"] == "tokens", "value"] == 0).all()
    detectable = found(report, protocol="carriers", check="minimal_detectable")["value"]
    assert detectable["speaker^negated"] == pytest.approx(2 * detectable["speaker"])
    assert (
        detectable["speaker^negated"]
        > found(report, protocol="items", check="minimal_detectable")["value"]["speaker^negated"]
    )


def test_carriers_are_counted_in_the_texts(factorial, rax):
    realised = design_audit.realisers(factorial)
    assert set(realised["speaker"].true) == {text.split(":")[0] for text in factorial.texts if text[0] == "A"}
    assert realised["speaker"].fewest == 16
    assert realised["negated"] == design_audit.Realisers(("not",), ())
    assert not realised["match"].found
    assert design_audit.realisers(rax)["speaker"] == design_audit.Realisers(("Ann0",), ("Bob0",))


def test_too_few_carriers_are_flagged_and_their_targets_not_testable():
    few = statements.factorial("few", {"blocks": 2}, made_world(8, 4, n_classes=4))
    report = design_audit.audit(few)
    carriers = found(report, check="carriers")
    assert carriers.loc["speaker", "verdict"] == "flagged"
    assert carriers.loc["speaker", "value"] == 4
    assert "identity" in carriers.loc["speaker", "message"]
    held = found(report, protocol="carriers", check="held_out")["verdict"]
    assert held["speaker^negated"] == "not testable"
    assert held["speaker^match"] == "ok"
    assert report.refused == ()


def test_with_enough_carriers_only_the_single_token_is_not_testable(factorial):
    held = found(design_audit.audit(factorial, ["carriers"]), check="held_out")["verdict"]
    assert list(held[held == "not testable"].index) == ["negated"]


def test_name_look_ups_are_seen_under_items_and_not_under_carriers(factorial):
    report = design_audit.audit(factorial)
    shared, held = (found(report, protocol=p, check="look_up") for p in ("items", "carriers"))
    assert shared.loc["speaker^negated", "value"] == 1
    assert shared.loc["speaker^negated", "verdict"] == "flagged"
    assert "speaker" in shared.loc["speaker^negated", "message"]
    assert (held["value"] == 0.5).all()
    assert (held["verdict"] == "ok").all()


def with_texts(design, texts):
    return dataclasses.replace(design, texts=tuple(texts))


def test_a_wrong_country_that_is_not_deranged_is_refused_by_name(factorial):
    """All wrong countries of one topic become one country that is the right one of a few items only."""
    texts = []
    for text, match, stratum in zip(factorial.texts, factorial.factors["match"], factorial.strata, strict=True):
        own = text.split(" class ")[-1] if " class " in text else text.split(" country ")[-1]
        word = own.split(".")[0]
        texts.append(text if match or stratum else text.replace(word, "citiesclass1"))
    report = design_audit.audit(with_texts(factorial, texts), ["carriers"])
    assert any("'citiesclass1' stands" in message and "match True" in message for message in report.refused)
    assert found(report, check="additive").loc["match", "verdict"] == "refused"
    # What names no match is as balanced as before.
    assert found(report, check="additive").loc["speaker^negated", "verdict"] == "ok"
    with pytest.raises(UserError, match=r"design 'factorial' is refused.*more in the log"):
        report.refuse()


def test_one_exchanged_country_is_enough(factorial):
    pick = np.flatnonzero(~factorial.factors["match"] & (factorial.items == 0))
    texts = list(factorial.texts)
    word = texts[pick[0]].split(" country ")[1].split(".")[0]
    other = next(f"citiesclass{i}" for i in range(6) if f"citiesclass{i}" != word)
    for i in pick:
        texts[i] = texts[i].replace(word, other)
    report = design_audit.audit(with_texts(factorial, texts), ["items"])
    assert any(f"'{word}'" in message or f"'{other}'" in message for message in report.refused)


def test_a_missing_cell_is_refused_by_name_where_balance_was_promised(factorial):
    flipped = factorial.factors["suffix"].copy()
    flipped[5] = ~flipped[5]
    broken = dataclasses.replace(factorial, factors=factorial.factors | {"suffix": flipped})
    report = design_audit.audit(broken, ["carriers"])
    item = factorial.item_names[factorial.items[5]]
    assert any(f"'{item}' has speaker=" in message for message in report.refused)


class TestPublishedLayout:
    def test_a_row_split_leaks_and_a_grouped_one_does_not(self, rax):
        report = design_audit.audit(rax, ["items", "published"], expected_leaks=())
        rows, items = (found(report, protocol=p, check="additive")["value"] for p in ("published", "items"))
        for target in ("negated^match", "speaker^negated"):
            assert rows[target] < 0.4
            assert abs(items[target] - 0.5) < 0.1
        assert any("(truth)" in m and "both sides of the split" in m for m in report.refused)

    def test_is_reported_where_its_protocol_was_asked_for_by_name(self, rax):
        report = design_audit.audit(rax, ["items", "published"])
        assert report.refused == ()
        assert found(report, protocol="published", check="additive").loc["negated^match", "verdict"] == "expected leak"
        assert found(report, check="balance").loc["all", "verdict"] == "flagged"
        # The wrong country is any other one: named, though nobody promised otherwise.
        assert "class" in found(report, protocol="items", check="tokens").loc["match", "message"]

    def test_has_no_carriers_to_hold_out(self, rax):
        report = design_audit.audit(rax, ["carriers", "items"])
        assert list(found(report, protocol="carriers")["verdict"]) == ["not testable"]
        assert found(report, protocol="items", check="held_out").loc["speaker^negated", "verdict"] == "flagged"

    def test_a_full_factorial_dilutes_the_row_leak_and_keeps_it(self, factorial):
        report = design_audit.audit(factorial, ["published"], expected_leaks=())
        values = found(report, check="additive")["value"]
        assert (values < 0.48).sum() > len(values) / 2
        assert report.refused


def csv_design(tmp_path, rows, **spec):
    pd.DataFrame(rows).to_csv(tmp_path / "own.csv", index=False)
    common = {"files": [{"path": "own.csv"}], "text": "text", "group": "item", "primary": ["a", "b"]}
    return designs.from_csv("own", common | {"features": {"a": "a", "b": "b"}} | spec, tmp_path)


def test_tokens_that_go_with_an_xor_make_a_baseline_of_a_users_table(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "item": f"i{i}",
            "a": a,
            "b": b,
            "text": f"i{i} {'so' if a else 'thus'} {'up' if rng.random() < share else 'down'} {b}{i}",
        }
        for i in range(200)
        for a in (0, 1)
        for b in (0, 1)
        for share in [0.8 if a != b else 0.2]
    ]
    report = design_audit.audit(csv_design(tmp_path, rows), ["items"])
    finding = found(report, check="additive").loc["a^b"]
    assert finding["verdict"] == "baseline"
    assert finding["value"] == pytest.approx(0.8, abs=0.05)
    assert report.refused == ()


def test_a_published_table_is_reported_and_not_refused():
    if not (DATA / "cities.csv").exists():
        pytest.skip("the published tables are not beside this checkout (../shared/data)")
    files = [{"path": f"{p}cities.csv", "set": {"negated": bool(p)}} for p in ("", "neg_")]
    spec = {"files": files, "text": "statement", "group": "city", "primary": ["truth", "negated"]}
    spec |= {"features": {"truth": "label", "negated": "negated"}, "derive": {"match": "truth ^ negated"}}
    report = design_audit.audit(designs.from_csv("cities", spec, DATA), ["items", "published"])
    assert report.refused == ()
    assert found(report, protocol="published", check="additive").loc["truth", "value"] < 0.35
    assert "(match)" in found(report, protocol="items", check="tokens").loc["truth^negated", "message"]


def test_accuracies_are_those_of_ridge_regression(factorial):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((120, 9))
    labels = (features @ rng.standard_normal((9, 2)) + rng.standard_normal((120, 2))) > 0
    fold = splits.Fold(np.arange(80), np.arange(80, 120), ())
    right = design_audit._accuracies(features, labels, [fold])
    for k in range(2):
        signs = np.where(labels[:, k], 1.0, -1.0)
        # scikit-learn penalises the sum, not the mean, of squares.
        ridge = Ridge(alpha=80 * design_audit.PENALTY).fit(features[:80], signs[:80])
        score = ridge.predict(features)
        middle = (score[:80][labels[:80, k]].mean() + score[:80][~labels[:80, k]].mean()) / 2
        guess, truth = score[80:] > middle, labels[80:, k]
        balanced = ((guess == truth)[truth].mean() + (guess == truth)[~truth].mean()) / 2
        assert right[:, k].mean() == pytest.approx(balanced)


def test_findings_are_written_the_same_every_time_and_gathered(factorial, rax, tmp_path):
    first, again = (design_audit.audit(rax, ["items"], seed=3) for _ in "ab")
    assert first.to_parquet() == again.to_parquet()
    (tmp_path / "b.parquet").write_bytes(first.to_parquet())
    (tmp_path / "a.parquet").write_bytes(design_audit.audit(factorial, ["items"]).to_parquet())
    together = pd.read_parquet(io.BytesIO(design_audit.gather([tmp_path / "b.parquet", tmp_path / "a.parquet"])))
    assert list(together.columns) == list(design_audit.COLUMNS)
    assert list(together["design"].unique()) == ["factorial", "rax"]
    part = together[together["design"] == "rax"].reset_index(drop=True)
    pd.testing.assert_frame_equal(part, first.findings, check_dtype=False)


def test_what_is_not_ok_is_logged_about_the_primary_target(factorial, caplog):
    with caplog.at_level(logging.INFO, logger="counterprobe.audit"):
        design_audit.audit(factorial)
    lines = [record.getMessage() for record in caplog.records]
    assert any("look_up" in line and "speaker^negated" in line and "more like it" in line for line in lines)
    assert any("minimal_detectable" in line and "‖δ‖" in line for line in lines)
    assert len(lines) < 12


def test_an_unknown_protocol_is_named(factorial):
    with pytest.raises(UserError, match="rows"):
        design_audit.audit(factorial, ["rows"])
