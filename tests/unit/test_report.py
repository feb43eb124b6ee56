"""The report, the comparison and the README's table: from planted results, and what they say when something is missing."""

import base64
import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest

from counterprobe import (
    claims,
    claims_compared,
    configuration,
    judgement,
    ledger,
    readme,
    report,
    statements,
    superposition_cells,
)
from counterprobe.progress import UserError

ROOT = Path(__file__).parents[2]
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PREAMBLE = "######## snakemake preamble start ########\nimport sys;sys.path.extend(['/secret'])"
SUBJECT = dict.fromkeys(
    ("model", "revision", "design", "published", "position", "protocol", "primary", "first", "second"), "x"
)
SUBJECT |= {"bos": False, "basic": ["x"], "needed": ["x"], "needless": ["x"]}


@pytest.fixture(scope="module")
def config():
    import yaml

    return configuration.validate(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))


def planted(folder, tables=None):
    """A results folder of one figure and whatever tables the ledger can be held against."""
    judged, legs = claims.judge(ledger.load(), tables or {}, SUBJECT, dict.fromkeys(tables or {}, "f" * 64))
    (folder / "tables").mkdir(parents=True)
    superposition_cells.write(judged, folder / "tables" / "claims.parquet", claims.COLUMNS)
    superposition_cells.write(legs, folder / "tables" / "claim_legs.parquet", claims.LEG_COLUMNS)
    figure = folder / "figures" / "x" / "x" / "geometry.png"
    figure.parent.mkdir(parents=True)
    figure.write_bytes(PIXEL)
    figure.with_suffix(".csv").write_text("a,b\n1,2\n")
    notebook = folder / "logs" / "draw_geometry" / "x" / "x.ipynb"
    notebook.parent.mkdir(parents=True)
    cells = [
        {"cell_type": "code", "metadata": {"tags": ["snakemake-job-properties"]}, "source": [PREAMBLE]},
        {"cell_type": "markdown", "metadata": {}, "source": ["# How <it> lies\n\nIn *words*."]},
        {"cell_type": "code", "metadata": {}, "source": ["draw(rows)"], "outputs": [{"text": "noise"}]},
    ]
    notebook.write_text(json.dumps({"cells": cells}))
    benchmark = folder / "benchmarks" / "train_probes" / "a.tsv"
    benchmark.parent.mkdir(parents=True)
    benchmark.write_text("s\th:m:s\tmax_rss\n12.5\t0:00:12\t300.5\n")
    (folder / "benchmarks" / "light.tsv").write_text("s\th:m:s\tmax_rss\n0.5\t0:00:00\t-\n")
    return folder


def geometry():
    row = {
        "model": "x",
        "revision": "x",
        "design": "x",
        "position": "x",
        "bos": False,
        "weights": "trained",
        "note": "",
    }
    row |= {"target": "x", "layer": 1, "estimate": 0.2, "lower": 0.1, "upper": 0.3}
    return pd.DataFrame([row | {"score": score} for score in ("margin_ratio", "salience_ratio")])


@pytest.fixture(scope="module")
def page(tmp_path_factory, config):
    folder = planted(tmp_path_factory.mktemp("results") / "default", {"geometry": geometry()})
    return report.render(folder, config, ["config/x.yaml"])


def test_the_page_needs_nothing_but_itself(page):
    loaded = re.findall(r'(?:src|srcset)="([^"]*)"|url\(([^)]*)\)|<link[^>]*href="([^"]*)"', page)
    assert [address for found in loaded for address in found if address and not address.startswith("data:")] == []
    assert "@import" not in page
    outside = re.findall(r'href="(https?://[^"]*)"', page)
    assert set(outside) <= {claim["page"] for claim in ledger.load().values()}


def test_every_link_inside_the_page_resolves(page):
    anchors = set(re.findall(r'id="([^"]*)"', page))
    assert set(re.findall(r'href="#([^"]*)"', page)) <= anchors
    assert len(re.findall(r'<tr id="C\d\d"', page)) == 56
    assert 'href="#figure-x-x-geometry"' in page


def test_notebooks_come_without_what_snakemake_put_in(page):
    assert "/secret" not in page
    assert "In <em>words</em>." in page
    assert "How &lt;it&gt; lies" in page
    assert "draw(rows)" in page
    assert "noise" not in page.split("<script>")[0].split('id="figures"')[1].split('id="audit"')[0]


def test_cost_and_command_are_told(page):
    assert "0.2 minutes of jobs in all (2 of them)" in page
    assert "--configfile config/x.yaml --force" in page


def test_a_claim_shows_its_number_its_configuration_and_its_code(page):
    row = re.search(r'<tr id="C09".*?(?=<tr id="C10")', page, re.DOTALL)[0]
    assert "0.2 [0.1, 0.3]" in row
    assert report.code_digest("measure_geometry.py") in row
    assert "&#34;probes&#34;" in row
    assert ledger.load()["C09"]["fixed"] in row
    numbers = re.search(r'href="data:text/csv;base64,([^"]*)" download="C09.csv"', row)[1]
    legs = pd.read_csv(io.BytesIO(base64.b64decode(numbers)))
    assert legs[["claim", "holds", "estimate"]].values.tolist() == [["C09", "yes", 0.2], ["C09", "yes", 0.2]]


def test_without_its_tables_the_page_says_what_to_do(tmp_path, config):
    with pytest.raises(UserError, match=r"claims\.parquet: no such file; run the experiment first"):
        report.render(tmp_path, config, [])


def test_a_run_of_nothing_still_has_a_page(tmp_path, config):
    page = report.render(planted(tmp_path / "r"), config, [])
    assert page.count("not run") > 56


def test_the_ledger_names_sections_scripts_and_tables_that_exist(config):
    about = ledger.about()
    rules = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow" / "rules").glob("*.smk"))
    made = set(re.findall(r"<results>/tables/(\w+)\.parquet", rules))
    for name in made & set(about["tables"]):
        entry = about["tables"][name]
        assert set(entry["config"]) <= set(config), name
        assert all((report.SCRIPTS / script).is_file() for script in entry["scripts"]), name
    asked = {leg["table"] for claim in about["claims"].values() for leg in claim["legs"]}
    assert asked <= set(about["tables"])
    assert {"probes", "geometry", "verdicts"} <= made


def test_roles_are_those_that_targets_are_judged_by():
    world = statements.world({"topics": {"cities": 8, "animals": 8}, "carriers": 8}, ROOT / "workflow" / "resources")
    design = statements.factorial("f", {"blocks": 4}, world)
    roles = {
        judgement.role(design, target) for target in ("speaker", "negated^match", "speaker^negated", "speaker^match")
    }
    assert roles == set(report.ROLES)
    asked = {leg["where"].get("role") for claim in ledger.load().values() for leg in claim["legs"]}
    assert asked - {None} <= roles


def test_forty_features_and_names_of_all_kinds_are_shown(tmp_path, config):
    folder = planted(tmp_path / "default")
    numbers = dict.fromkeys((name for name, kind in judgement.COLUMNS.items() if kind == "number"), 0.25)
    row = dict.fromkeys(judgement.COLUMNS, "x") | numbers | {"bos": False, "layer": 1, "use_layer": 1}
    names = [f"feature <{k}>" for k in range(40)]
    rows = [row | {"target": name, "role": "basic feature"} for name in names]
    rows.append(row | {"target": "ä^b", "role": "pre-registered", "model": "embedded", "position": "period"})
    superposition_cells.write(pd.DataFrame(rows), folder / "tables" / "verdicts.parquet", judgement.COLUMNS)
    page = report.render(folder, config, [])
    assert "All 41 targets" in page
    assert "feature &lt;39&gt;" in page
    assert "The XOR <strong>ä^b</strong>" in page


def test_sanity_checks_and_questions_are_listed_and_not_counted():
    verdicts = ("supported", "contradicted", "inconclusive", "not run")
    rows = [
        {"kind": kind, "verdict": verdict, "underpowered": verdict == "inconclusive"}
        for kind in ("claim", "optional", "sanity", "question")
        for verdict in verdicts
    ]
    counted = report.counts(rows)
    assert {verdict: counted[verdict] for verdict in verdicts} == dict.fromkeys(verdicts, 2)
    assert (counted["all"], counted["run"], counted["underpowered"]) == (8, 6, 2)
    assert (counted["sanity"], counted["sane"], counted["insane"]) == (4, 1, 1)


def test_every_claim_that_was_run_shows_its_power_or_that_it_has_none(page):
    rows = re.findall(r'<tr id="(C\d\d)" data-verdict="([^"]*)".*?data-label="power"[^>]*>([^<]*)<', page, re.DOTALL)
    assert len(rows) == 56
    assert all(re.search(r"\d|no interval", power) for _, verdict, power in rows if verdict != "not run")
    assert any(verdict != "not run" for _, verdict, _ in rows)


def test_figures_of_snakemakes_own_report_have_a_caption_a_category_and_labels():
    rules = sorted((ROOT / "workflow" / "rules").glob("*.smk"))
    drawn = 0
    for path in rules:
        text = path.read_text(encoding="utf-8")
        calls = re.findall(r"report\(\n((?:            .*\n)+)", text)
        drawn += len(calls)
        for call in calls:
            caption = re.search(r'caption="\.\./(report/\w+\.rst)"', call)
            assert caption, call
            assert (ROOT / "workflow" / caption[1]).read_text(encoding="utf-8").strip()
            assert re.search(r'category="\w', call)
            assert re.search(r'labels=\{"', call)
        # Calibration is asked for by name, and no figure of an experiment.
        if path.name != "calibration.smk":
            assert not re.findall(r'png="', text), path
    assert drawn >= 15


def test_figures_follow_their_questions_and_the_first_model_comes_first():
    names = ["a/d/capacity", "b/d/capacity", "superposition/geometry", "verdicts", "b/embedding", "b/d/unheard_of"]
    assert sorted(names, key=lambda name: report._place(name, ["b", "a"])) == [
        *("verdicts", "b/d/capacity", "a/d/capacity", "b/embedding", "superposition/geometry", "b/d/unheard_of"),
    ]


def test_a_small_p_is_small_and_no_p_is_none():
    assert [report._chance(p) for p in (0.0, 3e-37, 0.0123, 1.0)] == ["< 0.0001", "< 0.0001", "0.012", "1"]
    assert report._chance(float("nan")) == "–"
    assert report._interval({"estimate": 2e-8, "lower": -0.0, "upper": 0.0}) == "2e-08 [0, 0]"


def side(**rows):
    columns = ("verdict", "estimate", "lower", "upper", "statistic")
    return pd.DataFrame([{"claim": name, **dict(zip(columns, row, strict=True))} for name, row in rows.items()])


def test_two_experiments_side_by_side():
    nan = float("nan")
    first = side(
        C01=("supported", 0.8, 0.77, 0.83, "s"),
        C02=("supported", 0.8, 0.77, 0.83, "s"),
        C03=("supported", 0.8, 0.77, 0.83, "s"),
        C04=("supported", 3.0, nan, nan, "s"),
        C05=("supported", 0.8, 0.77, 0.83, "s"),
        C06=("not run", nan, nan, nan, ""),
    )
    second = side(
        C01=("supported", 0.84, 0.80, 0.88, "s"),
        C02=("supported", 0.86, 0.82, 0.90, "s"),
        C03=("contradicted", 0.4, 0.3, 0.5, "s"),
        C04=("supported", 4.0, nan, nan, "s"),
        C05=("supported", 0.1, 0.0, 0.2, "another"),
        C06=("not run", nan, nan, nan, ""),
    )
    table = claims_compared.compare(first, second).set_index("claim")
    assert table.change.to_dict() == {
        "C01": "within noise",
        "C02": "moved",
        "C03": "verdict",
        "C04": "no interval",
        "C05": "not comparable",
        "C06": "not comparable",
    }
    assert table.noise["C01"] == pytest.approx(0.05)
    assert table.moved["C02"] == pytest.approx(0.06)
    said = claims_compared.text(table.reset_index(), "default", "other").splitlines()
    assert [line[:3] for line in said[1:3]] == ["C03", "C02"]
    assert said[-1] == "1 no interval; 2 not comparable; 1 within noise"


def test_an_experiment_that_never_ran_cannot_be_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="run experiment other first"):
        claims_compared.read("other")


def test_the_readmes_table_is_the_rendering_of_docs(config):
    table = (ROOT / "docs" / "verdicts.csv").read_text(encoding="utf-8")
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.rendered(page, table) == page


def test_the_printed_claims_are_those_of_the_ledger():
    printed = pd.read_csv(ROOT / "docs" / "verdicts.csv", dtype=str).fillna("").set_index("claim")
    known = ledger.load()
    assert list(printed.index) == list(known)
    assert printed.fixed.to_dict() == {name: ledger.current(claim) for name, claim in known.items()}


def test_a_table_that_is_behind_is_a_line_and_no_error(config):
    judged, _ = claims.judge(ledger.load(), {}, SUBJECT, {})
    table = readme.verdicts(judged.to_dict("records"), config)
    assert readme.behind(table, config) == ""
    assert readme.behind(table, config | {"device": "cuda"}).startswith("The README's verdicts come from another conf")
    assert readme.behind(table, config | {"experiment": "smoke"}) == ""
    with pytest.raises(UserError, match="needs the lines"):
        readme.rendered("no marks", table)
