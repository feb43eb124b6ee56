"""A wrong configuration is refused in a line that names file, line, key and remedy; a right one completed."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from counterprobe import configuration
from counterprobe.progress import UserError

ROOT = Path(__file__).parents[2]

TEXT = """\
experiment: default
device: cpu
corpora:
  plain: {topics: {cities: 48, animals: 48}, carriers: 16, answer: none, seed: 0}
models:
  embedded:
    source: train
    corpus: plain
    architecture: {layers: 4, width: 128, heads: 4}
    training: {steps: 1024, batch: 128, learning_rate: 0.001, seed: 0}
    revisions: log2
  stories: {source: directory, path: ../x}
  pythia-70m: {source: hub, repo: EleutherAI/pythia-70m-deduped, revisions: [step0, step512, main]}
designs:
  factorial: {source: statements, layout: factorial, corpus: plain, blocks: 4, primary: [speaker, negated]}
  rax: {source: statements, layout: rax, corpus: plain, primary: [speaker, negated]}
  cities:
    source: csv
    files: [{path: a.csv, set: {negated: false}}, {path: b.csv, set: {negated: true}}]
    text: statement
    group: city
    features: {truth: label, negated: negated}
    derive: {match: truth ^ negated}
    carriers: {truth: country}
    primary: [truth, negated]
    unreadable: drop
run:
  models: [embedded]
  designs: [factorial, rax]
  controls: [init, gaussian]
  last_only: []
activations: {positions: [period, last], primary_position: period, bos: [false, true], primary_bos: false}
controls: {revisions: last, seeds: 5, embeddings: [kept, randomised]}
probes: {kinds: [logistic, mass_mean], penalties: [1.0e-4, 1.0], inner_folds: 3}
statistics: {resamples: 1000, confidence: 0.95, sign_flips: 4000}
planted: {items: 748, seeds: 20, width: 128}
"""


NO_FILE = "no such file.yaml"


def problems(text, file=None):
    """The lines of the error, read from a file where its path is given."""
    if file is not None:
        file.write_text(text)
    with pytest.raises(UserError) as caught:
        configuration.validate(yaml.safe_load(text), file or NO_FILE)
    return str(caught.value).split("\n")


def edited(before, after):
    assert TEXT.count(before) == 1, f"{before!r} stands {TEXT.count(before)} times in the example"
    return TEXT.replace(before, after)


def test_the_schema_is_a_schema():
    Draft202012Validator.check_schema(configuration.schema())


def nodes(node, path=()):
    """Every object of the schema that describes a value of the configuration."""
    if isinstance(node, dict):
        yield path, node
        for key, inner in node.items():
            yield from nodes(inner, (*path, key))
    elif isinstance(node, list):
        for index, inner in enumerate(node):
            yield from nodes(inner, (*path, index))


def test_every_key_is_described_and_no_mapping_is_open():
    for path, node in nodes(configuration.schema()):
        if path and path[-1] == "properties":
            for key, inner in node.items():
                described = {**configuration._resolve(inner), **inner}
                assert described.get("description", "").endswith("."), (*path, key)
        if node.get("type") == "object" and "const" not in path:
            assert "additionalProperties" in node, path
            assert node["additionalProperties"] is not True, path


def test_every_default_fits_its_own_schema():
    validator = Draft202012Validator(configuration.schema())
    found = 0
    for path, node in nodes(configuration.schema()):
        if "default" in node and path[-1] != "properties":
            found += 1
            assert validator.evolve(schema=node).is_valid(node["default"]), path
    assert found > 30


def test_the_example_is_right_and_completed():
    config = yaml.safe_load(TEXT)
    before = copy.deepcopy(config)
    complete = configuration.validate(config, NO_FILE)
    assert config == before
    assert complete["probes"]["dichotomies"] == 64
    assert complete["designs"]["factorial"]["seed"] == 0
    assert complete["designs"]["factorial"]["protocols"] == ["carriers", "items"]
    assert complete["designs"]["rax"]["protocols"] == ["items", "published"]
    assert complete["designs"]["cities"]["files"][0] == {"path": "a.csv", "set": {"negated": False}}
    assert "blocks" not in complete["designs"]["cities"]
    assert complete["statistics"] == config["statistics"]


def test_a_minimal_configuration_gets_every_section():
    config = {
        "experiment": "x",
        "corpora": {"c": {"topics": {"cities": 8}}},
        "models": {"m": {"source": "train", "corpus": "c"}},
        "designs": {"d": {"source": "statements", "layout": "rax", "corpus": "c", "primary": ["speaker", "negated"]}},
        "run": {"models": ["m"], "designs": ["d"]},
    }
    complete = configuration.validate(config, NO_FILE)
    # The toys have their defaults in config.yaml, beside their comments.
    assert set(complete) == set(configuration.schema()["properties"]) - {"superposition"}
    assert complete["models"]["m"]["architecture"] == {"layers": 4, "width": 128, "heads": 4}
    assert configuration.validate(complete, NO_FILE) == complete


def test_defaults_are_not_shared_between_definitions():
    complete = configuration.validate(yaml.safe_load(TEXT), NO_FILE)
    complete["designs"]["rax"]["protocols"].append("carriers")
    assert configuration.validate(yaml.safe_load(TEXT), NO_FILE)["designs"]["rax"]["protocols"] == [
        "items",
        "published",
    ]


@pytest.mark.parametrize(
    ("before", "after", "needle", "place", "said"),
    [
        # Unknown keys, at every depth.
        ("device: cpu", "devise: cpu", None, "devise", "unknown key; did you mean 'device'?"),
        ("seeds: 5", "seedz: 5", None, "controls.seedz", "unknown key; did you mean 'seeds'?"),
        ("penalties:", "zzz: 1, penalties:", None, "probes.zzz", "unknown key; known are kinds, penalties"),
        ("blocks: 4", "bloks: 4", None, "designs.factorial.bloks", "did you mean 'blocks'?"),
        ("heads: 4", "hats: 4", None, "models.embedded.architecture.hats", "did you mean 'heads'?"),
        (
            "{path: a.csv, set: {negated: false}}",
            "{path: a.csv, sett: {}}",
            "files:",
            "designs.cities.files[0].sett",
            "'set'",
        ),
        (
            "path: ../x",
            "path: ../x, repo: y",
            None,
            "models.stories.repo",
            "unknown key; known are source and path",
        ),
        # Wrong types.
        (
            "steps: 1024",
            "steps: many",
            None,
            "models.embedded.training.steps",
            "'many' is not a whole number",
        ),
        ("steps: 1024", "steps: 10.5", None, "models.embedded.training.steps", "10.5 is not a whole number"),
        ("0.001", "1e-3", None, "models.embedded.training.learning_rate", "YAML wants a point in it: 1.0e-3"),
        ("resamples: 1000", "resamples: '1000'", None, "statistics.resamples", "remove the quotes"),
        ("resamples: 1000", "resamples: true", None, "statistics.resamples", "true is not a whole number"),
        ("  last_only: []", "  last_only:", None, "run.last_only", "an empty value is not a list"),
        ("[false, true]", "[no thanks]", None, "activations.bos[0]", "'no thanks' is not true or false"),
        ("experiment: default", "experiment: [a]", None, "experiment", "a list is not text"),
        ("path: ../x", "path: 3", None, "models.stories.path", "3 is not text"),
        # Choices.
        ("device: cpu", "device: cuba", None, "device", "'cuba' is not a choice; choose cpu or cuda"),
        ("device: cpu", "device: auto", None, "device", "'auto' is not a choice; choose cpu or cuda"),
        ("[init, gaussian]", "[init, gausian]", None, "run.controls[1]", "did you mean 'gaussian'?"),
        ("source: hub", "source: hbu", None, "models.pythia-70m.source", "did you mean 'hub'?"),
        ("layout: rax", "layout: rex", None, "designs.rax.layout", "did you mean 'rax'?"),
        (
            "source: csv",
            "sauce: csv",
            "  cities:\n",
            "designs.cities.source",
            "the key is missing; choose statements or csv",
        ),
        (
            "revisions: last",
            "revisions: first",
            None,
            "controls.revisions",
            "'first' is not 'last' or a list",
        ),
        ("revisions: log2", "revisions: log3", None, "models.embedded.revisions", "did you mean 'log2'?"),
        # Missing keys.
        (
            "    corpus: plain\n",
            "",
            "  embedded:",
            "models.embedded.corpus",
            "the key is missing (Name of the corpus",
        ),
        ("experiment: default\n", "", "", "experiment", "the key is missing"),
        # Limits.
        ("blocks: 4", "blocks: 2", None, "designs.factorial.blocks", "2 is below 3"),
        ("confidence: 0.95", "confidence: 95", None, "statistics.confidence", "95 must be below 1"),
        ("[truth, negated]", "[truth]", None, "designs.cities.primary", "too few entries; at least 2"),
        ("[init, gaussian]", "[init, init]", None, "run.controls", "names the same thing twice"),
        # Names that become folders.
        ("experiment: default", "experiment: ../up", None, "experiment", "'../up' is no safe folder name"),
        ("  stories:", "  my stories:", None, "models.my stories", "'my stories' is no safe folder name"),
        ("EleutherAI/pythia-70m-deduped", "https://x/y", None, "models.pythia-70m.repo", "write OWNER/NAME"),
        # What the schema cannot say.
        ("models: [embedded]", "models: []", None, "run.models", "has too few entries; at least 1"),
        ("models: [embedded]", "models: [embeded]", None, "run.models[0]", "did you mean 'embedded'?"),
        (
            "models: [embedded]",
            "models: [gpt]",
            None,
            "run.models[0]",
            "defined are embedded, stories and pythia-70m",
        ),
        ("[factorial, rax]", "[factorial, rex]", None, "run.designs[1]", "did you mean 'rax'?"),
        ("    corpus: plain", "    corpus: plane", None, "models.embedded.corpus", "did you mean 'plain'?"),
        (
            "blocks: 4, primary: [speaker, negated]",
            "primary: [speaker, negatd]",
            None,
            "designs.factorial.primary[1]",
            "'negated'?",
        ),
        ("[truth, negated]", "[truth, match]", None, "designs.cities.primary[1]", "'match' names no factor"),
        ("truth ^ negated", "truth ^ negatd", None, "designs.cities.derive.match", "did you mean 'negated'?"),
        ("{match:", "{truth:", "    derive", "designs.cities.derive.truth", "'truth' is a feature already"),
        (
            "{truth: country}",
            "{thruth: country}",
            None,
            "designs.cities.carriers.thruth",
            "did you mean 'truth'?",
        ),
        (
            "cities: 48",
            "cities: 7",
            "  factorial: {",
            "designs.factorial.blocks",
            "4 blocks need at least 8 cities; the corpus has 7",
        ),
        (
            "carriers: 16",
            "carriers: 3",
            "  factorial: {",
            "designs.factorial.blocks",
            "at least as many carriers; the corpus has 3",
        ),
        ("inner_folds: 3", "inner_folds: 4", None, "probes.inner_folds", "3 remain"),
        (
            "heads: 4",
            "heads: 5",
            None,
            "models.embedded.architecture.heads",
            "5 heads do not divide a width of 128",
        ),
        (
            "revisions: log2",
            "revisions: [step1, step2048]",
            None,
            "models.embedded.revisions[1]",
            "training.steps is 1024",
        ),
        ("revisions: log2", "revisions: [first]", None, "models.embedded.revisions[0]", "'first' is no step"),
        ("last_only: []", "last_only: [cite]", None, "run.last_only[0]", "did you mean 'cities'?"),
        ("layout: rax,", "layout: rax, names: 17,", None, "designs.rax.names", "but the corpus has 16"),
        (
            "primary_position: period",
            "primary_position: before_period",
            None,
            "activations.primary_position",
            "not among",
        ),
        ("[period, last]", "[period, lost]", None, "activations.positions[1]", "did you mean 'last'?"),
    ],
)
def test_a_mistake_is_one_line_with_file_line_key_and_remedy(tmp_path, before, after, needle, place, said):
    """`needle` stands on the line to be named: by default the edit itself; "" means that no line is right."""
    file = tmp_path / "config.yaml"
    text = edited(before, after)
    (message,) = problems(text, file)
    where, _, what = message.partition(": ")
    line = text[: text.index(after if needle is None else needle)].count("\n") + 1
    assert where == (f"{file}, {place}" if needle == "" else f"{file} line {line}, {place}")
    assert said in what


def test_several_mistakes_are_told_together(tmp_path):
    text = edited("device: cpu", "device: gpu").replace("seeds: 5", "seeds: none").replace("blocks: 4", "blogs: 4")
    lines = problems(text, tmp_path / "config.yaml")
    assert len(lines) == 3
    assert {re.search(r"line (\d+)", line)[1] for line in lines} == {"2", "15", "33"}


def test_very_many_mistakes_are_cut_short():
    config = yaml.safe_load(TEXT)
    config["probes"].update({f"unknown{i}": 1 for i in range(14)})
    with pytest.raises(UserError) as caught:
        configuration.validate(config, NO_FILE)
    assert str(caught.value).endswith("and 4 more")


def test_without_a_file_the_hint_names_it():
    (message,) = problems(edited("device: cpu", "device: gpu"))
    assert message.startswith(f"{NO_FILE}, device: 'gpu' is not a choice")


def test_embeddings_that_never_move_need_a_corpus_that_there_is_where_they_are_asked_for():
    section = "  last_only: []\nfrozen_embeddings: {corpus: plane}\n"
    assert configuration.validate(yaml.safe_load(edited("  last_only: []\n", section)), NO_FILE)
    asked = edited("  last_only: []\n", f"  frozen_embeddings: [gaussian]\n{section}")
    (message,) = problems(asked)
    assert message.endswith("frozen_embeddings.corpus: 'plane' is not among corpora; did you mean 'plain'?")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("rows: []", "rare_features.rows: a list has too few entries; at least 1"),
        ("seeds: 1", "rare_features.seeds: 1 is below 3, the smallest that makes sense"),
        ("rarely: 0", "rare_features.rarely: 0 must be above 0"),
    ],
)
def test_settings_of_rare_features_that_cannot_be_are_refused_by_name(wrong, said):
    text = edited("  last_only: []\n", f"  last_only: []\nrare_features: {{{wrong}}}\n")
    (message,) = problems(text)
    assert message.endswith(said)


def test_the_later_file_is_named(tmp_path):
    base, overlay = tmp_path / "config.yaml", tmp_path / "overlay.yaml"
    base.write_text(TEXT)
    overlay.write_text("experiment: other\nrun:\n  models: [embedded, gone]\n")
    config = yaml.safe_load(TEXT)
    config["run"]["models"] = ["embedded", "gone"]
    with pytest.raises(UserError) as caught:
        configuration.validate(config, [base, overlay])
    assert str(caught.value).startswith(f"{overlay} line 3, run.models[1]: 'gone' is not among models")


def test_a_list_of_the_later_file_replaces_the_earlier_one(tmp_path):
    base, overlay = tmp_path / "a.yaml", tmp_path / "b.yaml"
    base.write_text("run:\n  models: [one, two, three]\n")
    overlay.write_text("\n\n\nrun: {models: [four]}\n")
    marks = configuration.load_lines([base, overlay])
    assert marks["run", "models", 0].file == str(overlay)
    assert marks["run", "models", 0].line == 4
    assert ("run", "models", 1) not in marks


def test_a_value_from_the_command_line_is_not_blamed_on_the_file(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(TEXT)
    with pytest.raises(UserError) as caught:
        configuration.validate({**yaml.safe_load(TEXT), "device": "gpu"}, file)
    assert str(caught.value).startswith("--config, device: 'gpu' is not a choice")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", "line 3: not valid YAML"),
        ("a: 1\n\tb: 2\n", "line 2: not valid YAML"),
        ("- a\n- b\n", "line 1: a configuration is a mapping"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "line 4, a.b: the key stands there twice"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, text, said):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        configuration.load_lines([file])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(file))


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such configuration file"):
        configuration.load_lines([tmp_path / "gone.yaml"])


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert configuration.load_lines([tmp_path / "empty.yaml"]) == {}


def paths_of(value, keys=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*keys, key)
            yield from paths_of(inner, (*keys, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths_of(inner, (*keys, index))


KEYS = sorted(paths_of(yaml.safe_load(TEXT)), key=str)
# These mappings are the user's own: any name may stand there.
OPEN = {("models",), ("designs",), ("corpora",)}


@given(st.sampled_from([keys for keys in KEYS if isinstance(keys[-1], str)]), st.text(min_size=1, max_size=8))
def test_no_misspelt_key_goes_through(keys, name):
    config = yaml.safe_load(TEXT)
    place = config
    for key in keys[:-1]:
        place = place[key]
    assume(name not in place and keys[:-1] not in OPEN)
    assume(keys[:3] not in {("designs", "cities", "files"), ("designs", "cities", "carriers")})
    assume(keys[:3] not in {("designs", "cities", "features"), ("designs", "cities", "derive")})
    place[name] = place.pop(keys[-1])
    with pytest.raises(UserError) as caught:
        configuration.validate(config, NO_FILE)
    assert configuration.dotted((*keys[:-1], name)) in str(caught.value) or "is missing" in str(caught.value)


@given(
    st.sampled_from(KEYS),
    st.recursive(st.none() | st.booleans() | st.text() | st.floats(), st.lists, max_leaves=4),
)
def test_whatever_stands_there_the_answer_is_a_configuration_or_a_user_error(keys, value):
    config = yaml.safe_load(TEXT)
    place = config
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    try:
        complete = configuration.validate(config, NO_FILE)
    except UserError as error:
        complete, message = None, str(error)
    if complete is None:
        assert message.startswith(NO_FILE)
    else:
        assert configuration.validate(complete, NO_FILE) == complete


def test_the_tracked_experiments_are_right():
    files = [ROOT / "config.yaml", *sorted((ROOT / "config").glob("*.yaml"))]
    files = [file for file in files if file.exists()]
    if not files:
        pytest.skip("no config.yaml yet")
    for overlay in files:
        chain = [files[0], overlay] if overlay != files[0] else [overlay]
        config = {}
        for file in chain:
            merge(config, yaml.safe_load(file.read_text()))
        configuration.validate(config, chain)


def merge(config, overlay):
    for key, value in overlay.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            merge(config[key], value)
        else:
            config[key] = value
