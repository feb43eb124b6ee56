"""The isolation of a rule's environment, with environments that are nothing but folders."""

import sys
import types

import pytest

from counterprobe import isolation
from counterprobe.progress import UserError


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A rule's environment and the host's, both on the path, in the order that Snakemake puts them in."""
    own, host = (tmp_path / name / "lib" / "python3.11" / "site-packages" for name in ("rule", "host"))
    for folder in (own, host):
        folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", ["/somewhere/stdlib", str(own), str(host), str(tmp_path / "scripts")])
    return tmp_path / "rule", own, host


def module(name, folder, **attributes):
    made = types.ModuleType(name)
    if folder is not None:
        made.__file__ = str(folder / name.replace(".", "/") / "__init__.py")
    vars(made).update(attributes)
    return made


def loaded(*modules):
    return {made.__name__: made for made in modules}


def test_what_the_library_imports_has_to_come_from_the_environment(places):
    prefix, own, host = places
    for folder, expected in ((own, {}), (host, {"pandas": str(host / "pandas" / "__init__.py")})):
        pandas = module("pandas", folder)
        ours = (module("counterprobe", None), module("counterprobe.tables", None, pd=pandas))
        modules = loaded(module("sys", None), *ours, pandas, module("pandas.core", folder))
        assert isolation.foreign_modules(modules, str(prefix)) == (expected, {})


def test_what_a_package_of_the_environment_finds_elsewhere_is_borrowed(places):
    prefix, own, host = places
    pillow = module("PIL", host)
    modules = loaded(module("counterprobe", None), module("transformers", own, PIL=pillow), pillow)
    assert isolation.foreign_modules(modules, str(prefix)) == ({}, {"PIL": str(host / "PIL" / "__init__.py")})


def test_what_snakemake_has_imported_for_itself_is_its_own_affair(places):
    prefix, _, host = places
    theirs = (module("snakemake", host), module("snakemake.script", host), module("yaml", host))
    main = module("__main__", None, snakemake=type("Snakemake", (), {"__module__": "snakemake.script"})())
    modules = loaded(main, *theirs, module("counterprobe", None))
    assert isolation.foreign_modules(modules, str(prefix)) == ({}, {})
    # ... until the script takes it from there.
    for value in (theirs[2], type("Loader", (), {"__module__": "yaml.loader"})):
        vars(main)["taken"] = value
        assert list(isolation.foreign_modules(modules, str(prefix))[0]) == ["yaml"]
    del vars(main)["taken"]
    modules["counterprobe.spec"] = module("counterprobe.spec", None, yaml=theirs[2])
    assert list(isolation.foreign_modules(modules, str(prefix))[0]) == ["yaml"]


def test_packages_that_are_links_and_packages_without_a_file(places, tmp_path):
    prefix, own, host = places
    cached = tmp_path / "pkgs" / "site-packages" / "numpy"
    cached.mkdir(parents=True)
    (cached / "__init__.py").touch()
    (own / "numpy").symlink_to(cached)
    begun = loaded(module("counterprobe", None))
    assert isolation.foreign_modules(begun | loaded(module("numpy", own)), str(prefix)) == ({}, {})
    spread = module("spread", None, __path__=[str(host / "spread")])
    assert isolation.foreign_modules(begun | loaded(spread), str(prefix)) == ({}, {"spread": str(host / "spread")})


def test_inside_a_job_the_host_is_off_the_path(places, monkeypatch):
    prefix, own, host = places
    monkeypatch.setattr(isolation.sys, "modules", loaded(module("counterprobe", None)))
    before = list(sys.path)
    with isolation.isolated({"CONDA_PREFIX": str(prefix)}, str(prefix)):
        assert sys.path == [entry for entry in before if entry != str(host)]
        assert str(own) in sys.path
    assert sys.path == before


def test_an_import_from_the_host_is_refused_by_name(places, monkeypatch):
    prefix, _, host = places
    pandas, pytz = module("pandas", host), module("pytz", host)
    modules = loaded(module("counterprobe", None), module("counterprobe.tables", None, a=pandas, b=pytz), pandas, pytz)
    monkeypatch.setattr(isolation.sys, "modules", modules)
    with (
        pytest.raises(UserError, match=r"^pandas comes from \S+/host/\S+ \(and 1 more\), not from .*/rule;") as caught,
        isolation.isolated({"CONDA_PREFIX": str(prefix)}, str(prefix)),
    ):
        pytest.fail("the job must not run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("conda", [None, "/another/environment"])
def test_outside_a_conda_environment_nothing_is_looked_at(places, monkeypatch, conda):
    prefix, _, host = places
    pandas = module("pandas", host)
    modules = loaded(module("counterprobe", None), module("counterprobe.tables", None, pd=pandas), pandas)
    monkeypatch.setattr(isolation.sys, "modules", modules)
    before = list(sys.path)
    with isolation.isolated({"CONDA_PREFIX": conda} if conda else {}, str(prefix)):
        assert sys.path == before


def test_one_environment_for_snakemake_and_scripts_is_no_leak(places, monkeypatch):
    prefix, own, host = places
    sys.path.remove(str(host))
    sys.path.append(str(own))
    monkeypatch.setattr(isolation.sys, "modules", loaded(module("counterprobe", None)))
    before = list(sys.path)
    with isolation.isolated({"CONDA_PREFIX": str(prefix)}, str(prefix)):
        assert sys.path == before
