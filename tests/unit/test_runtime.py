"""The frame around scripts: declared threads, whole outputs, one line for errors, a card nobody else has."""

import errno
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from snakemake.iocontainers import InputFiles, Log, OutputFiles, Params, ResourceList, Wildcards

from counterprobe import manifest, progress, runtime, tables
from counterprobe.progress import UserError

SCRIPTS = Path(runtime.__file__).parents[1]


class FakeSnakemake:
    """The attributes of the object that Snakemake gives a script, of the classes that it gives."""

    def __init__(self, folder, *, threads=1, log=True, notebook=False, outputs=None, **resources):
        self.rule = "train_probes"
        self.threads = threads
        self.wildcards = Wildcards(fromdict={"model": "embedded", "revision": "step64"})
        self.params = Params(fromdict={"spec": '{"probes": {"kinds": ["lda"]}}', "code": "c0de"})
        self.resources = ResourceList(fromdict=resources)
        self.input = InputFiles(fromdict={})
        self.output = OutputFiles(fromdict={name: str(folder / file) for name, file in (outputs or {}).items()})
        logs = {"notebook": str(folder / "logs" / "figure.ipynb")} if notebook else {}
        if log:
            logs["text"] = str(folder / "logs" / "probes.log")
        self.log = Log(fromdict=logs)


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """What a job sets for its own process, which here is the test's."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    tf32 = torch.backends.cudnn.allow_tf32
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.allow_tf32 = tf32


def log_of(folder):
    return (folder / "logs" / "probes.log").read_text()


def test_a_script_finds_what_it_needs(tmp_path):
    with runtime.job(FakeSnakemake(tmp_path, outputs={"scores": "a.parquet"})) as job:
        assert job.spec == {"probes": {"kinds": ["lda"]}}
        assert job.code == "c0de"
        assert job.wildcards.model == "embedded"
        assert job.output.scores == str(tmp_path / "a.parquet")
        assert job.device == "cpu"


@pytest.mark.parametrize(("declared", "given"), [(2, 1), (1, 8), (3, 3)])
def test_threads_are_those_declared_not_those_given(tmp_path, declared, given):
    from threadpoolctl import threadpool_info

    before = os.environ.get("OMP_NUM_THREADS")
    with runtime.job(FakeSnakemake(tmp_path, threads=given, declared_threads=declared)) as job:
        assert job.threads == declared
        assert torch.get_num_threads() == declared
        assert os.environ["OMP_NUM_THREADS"] == str(declared)
        blas = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
        assert blas == [declared] * len(blas)
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_a_rule_that_declares_none_has_one_thread(tmp_path):
    with runtime.job(FakeSnakemake(tmp_path, threads=8)):
        assert torch.get_num_threads() == 1


def test_algorithms_are_deterministic_and_without_tf32(tmp_path):
    with runtime.job(FakeSnakemake(tmp_path)):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_network_is_off_unless_asked_for(tmp_path):
    from huggingface_hub import constants

    was = constants.HF_HUB_OFFLINE
    with runtime.job(FakeSnakemake(tmp_path)):
        assert os.environ["HF_HUB_OFFLINE"] == "1"
        assert constants.HF_HUB_OFFLINE
    assert was == constants.HF_HUB_OFFLINE
    with runtime.job(FakeSnakemake(tmp_path), online=True):
        assert was == constants.HF_HUB_OFFLINE


def test_everything_said_is_in_the_log_and_the_terminal_has_one_line(tmp_path, capsys):
    with runtime.job(FakeSnakemake(tmp_path)):
        print("printed")
        print("to stderr", file=sys.stderr)
        progress.logger("probes").info("layer %d", 3)
        logging.getLogger("elsewhere").info("chatter of a library")
        logging.getLogger("elsewhere").warning("a library warns")
        warnings.warn("careful", stacklevel=1)
    log = log_of(tmp_path)
    for said in ("printed", "to stderr", "counterprobe.probes: layer 3", "a library warns", "careful"):
        assert said in log
    assert "chatter" not in log
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("train_probes embedded step64: ")
    assert captured.err.count("\n") == 1


def test_a_rerun_starts_a_new_log(tmp_path):
    for said in ("first", "second"):
        with runtime.job(FakeSnakemake(tmp_path)):
            print(said)
    assert log_of(tmp_path) == "second\n"


WRITER = """
import sys, time
print("ready", flush=True)
log = open(sys.argv[1], "a")
import fcntl
fcntl.flock(log, fcntl.LOCK_EX)
print("writing", flush=True)
sys.stdin.readline()
"""


def test_a_job_that_outlived_its_workflow_is_waited_for(tmp_path, capsys):
    log = tmp_path / "logs" / "probes.log"
    log.parent.mkdir()
    command = [sys.executable, "-c", WRITER, str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as orphan:
        assert [orphan.stdout.readline(), orphan.stdout.readline()] == ["ready\n", "writing\n"]
        release = threading.Timer(0.3, lambda: orphan.communicate("end\n"))
        release.start()
        started = time.monotonic()
        with runtime.job(FakeSnakemake(tmp_path)):
            assert time.monotonic() - started > 0.25
            assert orphan.wait(5) == 0
        release.join()
    assert "waiting for the same job of a run that was killed" in capsys.readouterr().err


@pytest.mark.parametrize("notebook", [True, False])
def test_without_a_text_log_nothing_is_redirected(tmp_path, capsys, notebook):
    with runtime.job(FakeSnakemake(tmp_path, log=False, notebook=notebook)):
        print("shown")
    assert capsys.readouterr().out == "shown\n"
    assert list(tmp_path.rglob("*.ipynb")) == []


def test_a_user_error_is_one_line_and_exit_status_one(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught, runtime.job(FakeSnakemake(tmp_path)):
        raise UserError("a.csv line 3: no number; correct it")
    assert caught.value.code == 1
    assert capsys.readouterr().err == "train_probes embedded step64: a.csv line 3: no number; correct it\n"
    assert log_of(tmp_path) == "a.csv line 3: no number; correct it\n"


def test_a_bug_leaves_its_traceback_in_the_log(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught, runtime.job(FakeSnakemake(tmp_path)):
        raise IndexError("layer 9\nand more")
    assert caught.value.code == 1
    line = capsys.readouterr().err
    log = tmp_path / "logs" / "probes.log"
    assert line == f"train_probes embedded step64: IndexError: layer 9; the traceback is in {log}\n"
    assert "Traceback" in log.read_text()
    assert "test_a_bug_leaves_its_traceback_in_the_log" in log.read_text()


def test_a_full_disk_is_said_plainly(tmp_path, capsys):
    with pytest.raises(SystemExit), runtime.job(FakeSnakemake(tmp_path)):
        raise OSError(errno.ENOSPC, "No space left on device", "layer_04.npy")
    assert "no space left on the disk for layer_04.npy" in capsys.readouterr().err


def test_a_card_that_is_too_small_is_said_plainly(tmp_path, capsys):
    with pytest.raises(SystemExit), runtime.job(FakeSnakemake(tmp_path)):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
    assert "lower activations.token_budget" in capsys.readouterr().err


def test_a_specification_that_is_no_json_fails_as_any_other_job(tmp_path):
    snakemake = FakeSnakemake(tmp_path)
    snakemake.params = Params(fromdict={"spec": "{", "code": ""})
    with pytest.raises(SystemExit), runtime.job(snakemake):
        pytest.fail("the script must not run")
    assert "JSONDecodeError" in log_of(tmp_path)


def row(**changed):
    values = {
        "model": "m", "revision": "main", "step": 0, "weights": "trained", "embeddings": "kept", "seed": 0,
        "design": "d", "position": "last", "bos": False, "layer": 1, "target": "t", "protocol": "items",
        "probe": "lda", "control": "none", "representation": "activations", "score": "accuracy", "level": 0.5,
        "estimate": 0.75, "lower": 0.7, "upper": 0.8, "n_texts": 10, "n_groups": 5, "note": "",
    }  # fmt: skip
    return {**values, **changed}


def test_each_writer_finds_its_output_by_suffix(tmp_path):
    outputs = {"scores": "x/a.parquet", "directions": "x/a.safetensors", "about": "x/a.json"}
    table = tables.frame([row(), row(layer=2)])
    with runtime.job(FakeSnakemake(tmp_path, outputs=outputs)) as job:
        job.write_table(table)
        job.write_tensors({"w": torch.arange(6.0).reshape(2, 3).T})
        job.write_json({"b": 1, "a": [1.5]})
    assert tables.read(tmp_path / "x/a.parquet")["layer"].tolist() == [1, 2]
    from safetensors.numpy import load_file

    np.testing.assert_array_equal(load_file(tmp_path / "x/a.safetensors")["w"], np.arange(6.0).reshape(2, 3).T)
    assert json.loads((tmp_path / "x/a.json").read_text()) == {"a": [1.5], "b": 1}
    assert sorted(file.name for file in (tmp_path / "x").iterdir()) == [
        "a.json",
        "a.parquet",
        "a.safetensors",
    ]


def test_two_outputs_of_a_kind_are_told_apart_by_name(tmp_path, capsys):
    outputs = {"one": "one.csv", "two": "two.csv"}
    with runtime.job(FakeSnakemake(tmp_path, outputs=outputs)) as job:
        job.write_bytes(b"1", "one")
        with job.writing("two") as path:
            path.write_bytes(b"2")
    assert (tmp_path / "one.csv").read_bytes() == b"1"
    assert (tmp_path / "two.csv").read_bytes() == b"2"
    with pytest.raises(SystemExit), runtime.job(FakeSnakemake(tmp_path, outputs=outputs)) as job:
        job.write_bytes(b"", suffix=".csv")
    assert "2 outputs ending in '.csv'" in capsys.readouterr().err


def test_a_job_that_fails_while_writing_leaves_no_output(tmp_path):
    def script():
        with (
            runtime.job(FakeSnakemake(tmp_path, outputs={"a": "out/a.csv"})) as job,
            job.writing("a") as path,
        ):
            path.write_text("half")
            raise UserError("no")

    with pytest.raises(SystemExit):
        script()
    assert list((tmp_path / "out").iterdir()) == []


def artefact(folder, *, data=b"abc", threads=1):
    """Run a job that makes a folder from two inputs; return its manifest."""
    folder.mkdir()
    manifest.write(folder / "in" / "manifest.json", {"files": {}, "seed": 3}, {"host": str(folder)})
    (folder / "table.csv").write_bytes(b"a,b\n")
    snakemake = FakeSnakemake(folder, declared_threads=threads)
    snakemake.input = InputFiles(
        fromdict={"checkpoint": str(folder / "in" / "manifest.json"), "tables": [str(folder / "table.csv")]}
    )
    with runtime.job(snakemake) as job:
        (folder / "out" / "deep").mkdir(parents=True)
        (folder / "out" / "deep" / "layer_00.npy").write_bytes(data)
        job.manifest(folder / "out", {"layers": 1})
    return folder / "out" / "manifest.json"


def test_a_manifest_tells_what_an_artefact_is_made_of(tmp_path):
    path = artefact(tmp_path / "a")
    document = manifest.verify(path)
    content = document["content"]
    assert content["layers"] == 1
    assert content["spec"] == {"probes": {"kinds": ["lda"]}}
    assert content["code"] == "c0de"
    assert content["wildcards"] == {"model": "embedded", "revision": "step64"}
    assert content["inputs"] == {
        "checkpoint": manifest.digest(tmp_path / "a" / "in" / "manifest.json"),
        "tables": [manifest.sha256_file(tmp_path / "a" / "table.csv")],
    }
    assert list(content["files"]) == ["deep/layer_00.npy"]
    assert content["versions"]["torch"].startswith("2.")
    assert content["threads"] == 1
    assert content["device"] == "cpu"
    assert set(document["run"]) == {"host", "started", "seconds", "peak_memory_mb"}
    assert 10 < document["run"]["peak_memory_mb"] < 1e6


def test_an_equal_run_in_another_folder_has_an_equal_digest(tmp_path):
    one, same = artefact(tmp_path / "a"), artefact(tmp_path / "b")
    assert manifest.digest(one) == manifest.digest(same)
    assert manifest.digest(one) != manifest.digest(artefact(tmp_path / "c", data=b"abd"))
    assert manifest.digest(one) != manifest.digest(artefact(tmp_path / "d", threads=2))


def test_cuda_without_a_cuda_build_is_a_clear_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(SystemExit), runtime.job(FakeSnakemake(tmp_path, gpu=1)) as job:
        assert job.device
    assert "is a CPU build; install the CUDA build" in capsys.readouterr().err


def test_cuda_without_a_card_is_a_clear_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit), runtime.job(FakeSnakemake(tmp_path, gpu=1)):
        pytest.fail("the script must not run")
    assert "asks for 1 card(s), but 0 can be seen" in capsys.readouterr().err


def test_cards_are_leased_to_one_job_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with runtime.GpuLease(1, folder=tmp_path) as one:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
        with runtime.GpuLease(2, folder=tmp_path) as two:
            assert (one.cards, two.cards) == (("0",), ("1", "2"))
            assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,2"
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1,2"


HOLDER = """
import sys, time
from pathlib import Path
from counterprobe import runtime
print("ready", flush=True)
with runtime.GpuLease(1, folder=Path(sys.argv[1]), poll_seconds=0.02) as lease:
    print(lease.cards[0], flush=True)
    time.sleep(60)
"""


def holder(folder, cards="0"):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": cards, "PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-c", HOLDER, str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_killed_job_gives_its_card_back_and_the_next_one_waited(tmp_path):
    first, second = holder(tmp_path), None
    try:
        assert first.stdout.readline() == "ready\n"
        assert first.stdout.readline() == "0\n"
        second = holder(tmp_path)
        assert second.stdout.readline() == "ready\n"
        assert select.select([second.stdout], [], [], 0.5)[0] == []
        first.kill()
        first.wait()
        assert second.stdout.readline() == "0\n"
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait()
                process.stdout.close()


def test_two_jobs_get_different_cards_of_two(tmp_path):
    jobs = [holder(tmp_path, "0,1") for _ in range(2)]
    try:
        assert [job.stdout.readline() for job in jobs] == ["ready\n"] * 2
        assert sorted(job.stdout.readline() for job in jobs) == ["0\n", "1\n"]
    finally:
        for job in jobs:
            job.kill()
            job.wait()
            job.stdout.close()


def test_inside_slurm_the_scheduler_has_picked_the_card(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with runtime.GpuLease(1, folder=tmp_path):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_the_driver_has_no_cards(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "")
    assert runtime.visible_cards() == []


@pytest.mark.gpu
def test_a_card_is_used_and_recorded(tmp_path):
    with runtime.job(FakeSnakemake(tmp_path, gpu=1)) as job:
        x = torch.ones(64, 64, device=job.device)
        assert (x @ x).sum().item() == 64**3
        job.write_manifest(tmp_path / "manifest.json", {})
    document = manifest.read(tmp_path / "manifest.json")
    assert document["content"]["device"] == "cuda"
    assert document["run"]["card"]


def test_a_bar_yields_everything_and_says_now_and_then_how_far_it_is(caplog, monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, logger="counterprobe"):
        assert list(progress.bar([7, 8, 9, 10, 11, 12], label="texts")) == [7, 8, 9, 10, 11, 12]
    assert [record.getMessage() for record in caplog.records] == ["texts 3 of 6", "texts 6 of 6"]


def test_a_bar_needs_no_length(caplog):
    assert list(progress.bar(character for character in "abc")) == ["a", "b", "c"]


def test_terse_takes_out_chatter_only():
    log = logging.getLogger("a workflow")
    log.setLevel(logging.INFO)
    log.propagate = False
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    log.addHandler(handler)
    progress.terse(log)
    log.info("Select jobs to execute...")
    log.info("Execute 2 jobs...", extra={"event": FakeEvent("job_started")})
    log.info("Finished jobid: 3", extra={"event": FakeEvent("job_finished")})
    log.info("3 of 4 steps", extra={"event": FakeEvent("progress")})
    log.error("a job failed", extra={"event": FakeEvent("job_finished")})
    assert seen == ["3 of 4 steps", "a job failed"]


def failure_report(tmp_path, log, *, status=None, finished=False):
    """What is said in the end of one job that failed with this log; and what was seen before."""
    workflow_log = logging.Logger("a workflow")
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    workflow_log.addHandler(handler)
    failures = progress.terse(workflow_log)
    if status is not None:
        end = f"returned non-zero exit status {status}" if isinstance(status, int) else f"died with <{status}>"
        said = f"RuleException:\nCommand 'set -euo pipefail;  python x.py' {end}."
        workflow_log.error(said, extra={"event": FakeEvent("error")})
    job = {"event": FakeEvent("job_error"), "rule_name": "draw_leak", "jobid": 3, "log": [str(log)]}
    workflow_log.error("Error in rule draw_leak, jobid: 3", extra=job)
    if finished:
        workflow_log.info("Finished jobid: 3", extra={"event": FakeEvent("job_finished"), "job_id": 3})
    workflow_log.error("Exiting because a job execution failed. Look above for error messages")
    assert seen == []
    return failures.report()


def test_a_failed_job_ends_with_its_log(tmp_path):
    log = tmp_path / "a.log"
    log.write_text(
        "\n".join(["Traceback (most recent call last):", *(f"line {i}" for i in range(30)), "IndexError: 9"])
    )
    for status in (1, None):
        said = failure_report(tmp_path, log, status=status).splitlines()
        assert said[:2] == ["draw_leak failed", f"  log: {log}"]
        assert said[2:] == [f"    line {i}" for i in range(11, 30)] + ["    IndexError: 9"]


def test_what_the_terminal_has_is_not_said_again(tmp_path):
    log = tmp_path / "b.log"
    log.write_text("a.csv line 3: no number; correct it\n")
    assert failure_report(tmp_path, log, status=1) == f"draw_leak failed\n  log: {log}"
    assert failure_report(tmp_path, log).endswith("    a.csv line 3: no number; correct it")


def test_a_killed_job_and_one_without_a_log_are_said_to_be_that(tmp_path):
    for status in (137, "Signals.SIGKILL: 9"):
        said = failure_report(tmp_path, tmp_path / "absent.log", status=status)
        assert said.startswith("draw_leak was killed (signal 9)")
        assert said.endswith("absent.log (not written)")


def test_a_job_that_succeeded_when_tried_again_did_not_fail(tmp_path):
    assert failure_report(tmp_path, tmp_path / "c.log", finished=True) == ""


def test_a_failed_notebook_ends_with_its_traceback(tmp_path):
    log = tmp_path / "leak.ipynb"
    traceback = ["\x1b[0;31mValueError\x1b[0m  Traceback", "Cell In[3], line 2\n----> 2 draw()", "ValueError: no rows"]
    cells = [{"outputs": []}, {"outputs": [{"output_type": "error", "traceback": traceback}]}, {}]
    log.write_text(json.dumps({"cells": cells}))
    lines = ["ValueError  Traceback", "Cell In[3], line 2", "----> 2 draw()", "ValueError: no rows"]
    assert failure_report(tmp_path, log).splitlines()[2:] == [f"    {line}" for line in lines]
    assert failure_report(tmp_path, log, status=1).splitlines()[2:] == ["    ValueError: no rows"]
    log.write_text("{")
    assert failure_report(tmp_path, log).splitlines()[2:] == []


class FakeEvent:
    def __init__(self, value):
        self.value = value


def test_snakemake_names_its_events_as_terse_does():
    from snakemake_interface_logger_plugins.common import LogEvent

    named = {LogEvent.JOB_STARTED, LogEvent.JOB_FINISHED, LogEvent.JOB_ERROR, LogEvent.ERROR}
    assert {event.value for event in named} == {"job_started", "job_finished", "job_error", "error"}
