"""Slices and code digests: equal things are equal, different things differ, and nothing else is looked at."""

import ast
import json
import math
import sys
import time
from collections import OrderedDict
from pathlib import Path, PurePath

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from counterprobe import spec

LIBRARY = Path(spec.__file__).parent

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def shuffled(value, random):
    if isinstance(value, dict):
        keys = list(value)
        random.shuffle(keys)
        return OrderedDict((key, shuffled(value[key], random)) for key in keys)
    return [shuffled(inner, random) for inner in value] if isinstance(value, list) else value


@given(values, st.randoms(use_true_random=False))
def test_canonical_ignores_the_order_of_keys(value, random):
    assert spec.canonical(shuffled(value, random)) == spec.canonical(value)


@given(values)
def test_canonical_is_json_of_an_equal_value(value):
    # JSON text to Python and back: an oracle that knows nothing of how canonical works.
    assert json.loads(spec.canonical(value)) == value


@given(values, values)
def test_canonical_tells_different_values_apart(one, other):
    # Python's == takes True for 1, which JSON does not.
    assume(one != other)
    assert spec.canonical(one) != spec.canonical(other)


@given(st.integers(min_value=-(2**53), max_value=2**53))
def test_a_whole_float_is_written_as_an_integer(number):
    assert spec.canonical(float(number)) == spec.canonical(number) == str(number)


def test_true_is_not_one():
    assert spec.canonical({"a": True}) != spec.canonical({"a": 1})


@pytest.mark.parametrize("value", [{1, 2}, PurePath("a"), np.float64(0.5), np.int64(3), b"x", 1j])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(TypeError):
        spec.canonical({"key": [value]})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="no place"):
        spec.canonical([value])


def test_a_key_that_is_no_text_is_refused():
    with pytest.raises(TypeError, match="quote it"):
        spec.canonical({1: "a"})


def test_digest_is_sha256_of_utf8():
    assert spec.digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert spec.digest("δ") == spec.digest("δ".encode())


CONFIG = {
    "probes": {"kinds": ["logistic"], "penalties": [0.1, 1.0]},
    "activations": {"positions": ["period"], "dtype": "float32"},
    "corpora": {"plain": {"carriers": 16}, "other": {"carriers": 8}},
    "models": {
        "pythia-2.8b": {"source": "hub", "training": {"steps": 5}},
        "embedded": {"source": "train", "corpus": "plain"},
    },
    "designs": {"factorial": {"corpus": "plain", "seed": 0}, "cities": {"source": "csv"}},
}


def read(*paths, wildcards=None, refs=None, config=CONFIG):
    return json.loads(spec.slice_(config, paths, wildcards, refs))


def test_a_section_is_found_under_its_name():
    assert read("probes") == {"probes": CONFIG["probes"]}


def test_a_key_is_found_where_the_configuration_has_it_and_alone():
    assert read("activations.dtype") == {"activations": {"dtype": "float32"}}


def test_a_definition_is_found_under_the_wildcards_name():
    assert read("designs.{design}", wildcards={"design": "factorial"}) == {"design": {"corpus": "plain", "seed": 0}}


def test_a_name_with_a_point_in_it_is_one_name():
    found = read("models.{model}.training", wildcards={"model": "pythia-2.8b"})
    assert found == {"model": {"training": {"steps": 5}}}


def test_a_reference_brings_the_definition_it_names():
    found = read("designs.{design}", wildcards={"design": "factorial"}, refs={"corpora": "designs.{design}.corpus"})
    assert found == {"design": {"corpus": "plain", "seed": 0}, "corpus": {"carriers": 16}}


def test_a_reference_that_is_absent_brings_nothing():
    found = read("designs.{design}", wildcards={"design": "cities"}, refs={"corpora": "designs.{design}.corpus"})
    assert found == {"design": {"source": "csv"}}


def test_a_reference_to_something_undefined_is_an_error():
    config = {**CONFIG, "designs": {"factorial": {"corpus": "gone"}}}
    with pytest.raises(KeyError, match=r"corpora\.gone"):
        read(wildcards={"design": "factorial"}, refs={"corpora": "designs.{design}.corpus"}, config=config)


def test_overlapping_slices_are_united():
    assert read("activations.dtype", "activations", "activations.positions") == {"activations": CONFIG["activations"]}


def test_two_things_under_one_key_are_an_error():
    with pytest.raises(ValueError, match="corpus"):
        read(
            "corpora.{corpus}",
            wildcards={"corpus": "other", "design": "factorial"},
            refs={"corpora": "designs.{design}.corpus"},
        )


@pytest.mark.parametrize("path", ["probs", "probes.kind", "designs.{design}", "probes.kinds.logistic"])
def test_an_absent_key_is_an_error_that_names_it(path):
    with pytest.raises(KeyError, match="the configuration has no"):
        read(path, wildcards={"design": "gone"})


def test_slicing_leaves_the_configuration_alone():
    before = json.dumps(CONFIG)
    read("activations.dtype", "activations", "probes", "models.embedded", "models.embedded.corpus")
    assert json.dumps(CONFIG) == before


@given(values, values)
def test_a_slice_depends_on_what_it_names_alone(value, elsewhere):
    one = {"probes": value, "statistics": 1, "models": {"a": 2}}
    other = {"statistics": 1, "models": {"a": 2, "b": elsewhere}, "probes": elsewhere}
    paths, wildcards = ["statistics", "models.{model}"], {"model": "a"}
    assert spec.slice_(one, paths, wildcards) == spec.slice_(other, paths, wildcards)


# Code digests, on a package of our own.


@pytest.fixture
def workflow(tmp_path):
    library = tmp_path / "scripts" / "package"
    library.mkdir(parents=True)
    files = {
        "scripts/job.py": "from package import probes\n",
        "scripts/other.py": "import package.plots\n",
        "scripts/package/__init__.py": "",
        "scripts/package/probes.py": "from package.statistics import mean\nfrom package import progress\n",
        "scripts/package/statistics.py": "def mean():\n    from package import geometry as g\n    return g\n",
        "scripts/package/geometry.py": "from . import constants\n",
        "scripts/package/constants.py": "from package import probes\n",
        "scripts/package/plots.py": "import os\n",
        "scripts/package/progress.py": "class UserError(ValueError): pass\n",
        "torch.yaml": "dependencies: [python]\n",
        "torch.post-deploy.sh": "pip install\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def code(workflow, script="job.py", environment="torch.yaml"):
    scripts = workflow / "scripts"
    return spec.code_digest(scripts / script, scripts / "package", environment and workflow / environment)


def append(file, text="# an edit\n"):
    file.write_text(file.read_text() + text)


@pytest.mark.parametrize(
    "edited",
    [
        "scripts/job.py",
        "scripts/package/probes.py",
        "scripts/package/statistics.py",
        "scripts/package/geometry.py",  # imported inside a function
        "scripts/package/constants.py",  # relative import, and in a circle
        "torch.yaml",
        "torch.post-deploy.sh",
    ],
)
def test_an_edit_of_what_the_job_reaches_changes_its_digest(workflow, edited):
    before = code(workflow), code(workflow, "other.py", None)
    append(workflow / edited)
    assert code(workflow) != before[0]
    assert code(workflow, "other.py", None) == before[1]


@pytest.mark.parametrize("edited", ["scripts/other.py", "scripts/package/plots.py", "scripts/package/progress.py"])
def test_an_edit_of_anything_else_does_not(workflow, edited):
    before = code(workflow)
    append(workflow / edited)
    assert code(workflow) == before


def test_touching_and_moving_change_nothing(workflow, tmp_path_factory):
    before = code(workflow)
    for file in workflow.rglob("*.py"):
        file.touch()
    moved = workflow.rename(tmp_path_factory.mktemp("elsewhere") / "a folder")
    assert code(moved) == before


def test_a_deleted_post_deploy_script_changes_the_digest(workflow):
    before = code(workflow)
    (workflow / "torch.post-deploy.sh").unlink()
    assert code(workflow) != before


def test_an_import_that_has_no_module_is_an_error(workflow):
    append(workflow / "scripts/package/geometry.py", "from package import gone\n")
    with pytest.raises(FileNotFoundError, match="gone"):
        code(workflow)


def notebook(cells, **metadata):
    cells = [{"cell_type": kind, "source": source, "metadata": {}, "outputs": [], **metadata} for kind, source in cells]
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4})


def test_only_code_cells_of_a_notebook_count(workflow):
    path = workflow / "scripts" / "figure.ipynb"
    source = ["%matplotlib inline\n", "from package import plots\n"]
    path.write_text(notebook([("markdown", "# Title"), ("code", source)]))
    before = code(workflow, "figure.ipynb")
    path.write_text(notebook([("markdown", "# Another"), ("code", "".join(source))], execution_count=3))
    assert code(workflow, "figure.ipynb") == before
    append(workflow / "scripts/package/plots.py")
    after = code(workflow, "figure.ipynb")
    assert after != before
    path.write_text(notebook([("markdown", "# Another"), ("code", [*source, "plots.draw()"])]))
    assert code(workflow, "figure.ipynb") not in (before, after)


def test_thousands_of_digests_are_planned_in_a_moment():
    started = time.perf_counter()
    for _ in range(500):
        spec.code_digest(LIBRARY / "runtime.py", LIBRARY)
    assert time.perf_counter() - started < 5


def test_our_library_has_no_import_that_a_digest_would_miss():
    assert (LIBRARY / "__init__.py").read_text() == ""
    for file in [*LIBRARY.glob("*.py"), *LIBRARY.parent.glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_bytes())):
            called = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
            assert called not in ("import_module", "__import__", "exec"), f"{file.name} line {node.lineno}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from package import plots as p, probes  # and more\n", ("plots", "probes")),
        (
            "if True:\n    from package import (\n        plots,  # one\n        probes as q,\n    )\n",
            ("plots", "probes"),
        ),
        ("import os, package.plots as p\n", ("plots",)),
        ("from package import (\n    plots,  # one (of two)\n    probes,\n)\n", ("plots", "probes")),
        ("import os; from package import plots; import package.probes\n", ("plots", "probes")),
        ("from package.plots import draw\nfrom package.probes import (\n    fit,\n)\n", ("plots", "probes")),
        ("from . import plots\nfrom .probes import fit\n", ("plots", "probes")),
        ("from package import \\\n    plots\n", ("plots",)),
        ("import packaged.plots\nfrom packages import probes\nimport package\n", ()),
        ("important = 'from package'\n# import package.plots\nfrom .. import plots\n", ()),
        ("from package import progress\n", ()),
    ],
)
def test_every_form_of_an_import_is_seen(source, found):
    assert spec.imported_modules(source, True, "package") == found
    ast.parse(source)


NOTEBOOKS = LIBRARY.parents[1] / "notebooks"


@pytest.mark.parametrize(
    "file",
    [*LIBRARY.glob("*.py"), *LIBRARY.parent.glob("*.py"), *NOTEBOOKS.glob("*.ipynb")],
    ids=lambda file: file.name,
)
def test_the_imports_of_our_library_are_those_that_python_sees(file):
    source = file.read_text()
    if file.suffix == ".ipynb":
        source = "\n".join(
            "".join(cell["source"]) for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"
        )
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    modules = {name.split(".")[1] for name in names if name.startswith(f"{LIBRARY.name}.")}
    found = spec.imported_modules(source, file.parent == LIBRARY, LIBRARY.name)
    assert set(found) == modules - spec.UNTRACKED


def test_our_library_is_flat():
    assert not [file for file in LIBRARY.rglob("*.py") if file.parent != LIBRARY]


@pytest.mark.parametrize("module", ["spec", "configuration", "manifest", "progress", "runtime"])
def test_what_the_snakefile_may_import_needs_the_standard_library_only(module):
    tree = ast.parse((LIBRARY / f"{module}.py").read_bytes())
    for node in tree.body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split(".")[0] in {*sys.stdlib_module_names, "counterprobe"}
