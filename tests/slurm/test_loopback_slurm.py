"""Where no cluster may or can be started, the reason is said and nothing is touched."""

import sys

import pytest


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    module = sys.modules["slurm_loopback_slurm"]
    monkeypatch.setattr(module, "SYSTEM_CONFIGURATIONS", (tmp_path / "slurm.conf",))
    # Whatever would be started or installed fails the test.
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: pytest.fail("a command was run"))
    return module


def test_a_machine_that_belongs_to_a_cluster_is_left_alone(slurm, tmp_path):
    (tmp_path / "slurm.conf").touch()
    with pytest.raises(slurm.CannotStart, match="belongs to a cluster"):
        slurm.install()
    with pytest.raises(slurm.CannotStart, match="belongs to a cluster"):
        slurm.start(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_what_is_missing_is_named(slurm, monkeypatch):
    monkeypatch.setattr(slurm.shutil, "which", lambda program, **_: None if program == "slurmd" else program)
    assert "slurmd missing" in slurm.why_not()


def test_who_is_not_root_is_told(slurm, monkeypatch):
    monkeypatch.setattr(slurm.shutil, "which", lambda program, **_: None)
    monkeypatch.setattr(slurm.os, "geteuid", lambda: 1000)
    with pytest.raises(slurm.CannotStart, match="only root"):
        slurm.install()
    monkeypatch.setattr(slurm.shutil, "which", lambda program, **_: program)
    assert "needs root" in slurm.why_not()
