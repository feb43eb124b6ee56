"""The workflow and its profile on a real SLURM: what is submitted, what is retried, what an interruption leaves behind."""

import re
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

HERE = Path(__file__).parent
SMOKE = ("--configfile", "config/smoke.yaml")
TABLES = ("audit", "behaviour", "health", "probes")


@pytest.fixture(scope="session")
def trouble(cluster, submit, tmp_path_factory):
    """The workflow of troubles, started; one of its jobs is cancelled as soon as it runs."""
    folder = tmp_path_factory.mktemp("trouble")
    run = submit(folder, "--snakefile", str(HERE / "trouble.smk"))

    def cancel():
        while run.process.poll() is None and not (folder / "begun" / "cancelled.1").exists():
            time.sleep(0.5)
        listing = cluster.ask("squeue", "--noheader", "--states=RUNNING", "--format=%i %k")
        for number in re.findall(r"^(\d+) rule_cancelled", listing, re.MULTILINE):
            cluster.ask("scancel", number)

    thread = threading.Thread(target=cancel, daemon=True)
    thread.start()
    return run


# The troubles mostly wait, for a time limit of a minute: they begin first and are looked at last.
@pytest.fixture(scope="module")
def experiment(trouble, submit, fresh_checkout):
    """The smoke experiment, interrupted once its checkpoints are being read, then run again to its end."""
    folder = fresh_checkout().root
    first = submit(folder, *SMOKE)
    first.until(lambda: list(folder.glob("results/smoke/logs/extract_activations/tiny/*/*/*.log")), 180)
    first.interrupt()
    first.finish(60)
    left = first.queue("PENDING", "RUNNING")
    second = submit(folder, *SMOKE)
    second.succeed()
    return folder, first, second, left


def test_ctrl_c_cancels_what_is_in_the_queue(experiment):
    _, first, _, left = experiment
    assert first.process.returncode != 0
    assert left == []
    assert first.queue("CANCELLED")


def test_the_second_run_does_the_rest_and_no_more(experiment, submit):
    folder, first, second, _ = experiment
    assert "rule_train_model" in first.output + "".join(str(path) for path in folder.glob("logs/slurm/*"))
    assert not re.search(r"^(local)?rule (train_model|write_design|register_trained):", second.output, re.MULTILINE)
    assert second.queue("COMPLETED") == second.submitted
    third = submit(folder, *SMOKE)
    assert "Nothing to be done" in third.succeed(60)


def test_every_job_that_is_not_local_went_through_sbatch(experiment):
    _, first, second, _ = experiment
    output = first.output + second.output
    local = set(re.findall(r"^localrule (\w+):", output, re.MULTILINE))
    assert local <= {"all", "register_trained", "audit_design"}
    jobs = len(re.findall(r"^\s*rule \w+:", output, re.MULTILINE))
    submitted = first.submitted + second.submitted
    assert 0 < len(submitted) < jobs / 2, "small jobs share an allocation"


def test_logs_are_where_a_person_looks(experiment):
    folder, _, second, _ = experiment
    for number in second.submitted:
        assert len(list(folder.glob(f"logs/slurm/**/{number}.log"))) == 1


def test_tables_are_byte_identical_to_those_of_this_machine(experiment, smoke):
    folder, *_ = experiment
    for table in TABLES:
        path = f"results/smoke/tables/{table}.parquet"
        assert len(pd.read_parquet(folder / path)) > 0
        assert (folder / path).read_bytes() == smoke.read(path), table


def test_a_killed_controller_leaves_a_lock_and_nothing_else(cluster, submit, tmp_path):
    chain = ("--snakefile", str(HERE / "chain.smk"))
    first = submit(tmp_path, *chain)
    first.until(lambda: len(first.queue("RUNNING")) == 2 and len(first.queue("PENDING")) == 2)
    first.until(lambda: len(list(tmp_path.glob("begun/*"))) == 2)
    first.kill()
    assert len(first.queue("RUNNING", "PENDING")) == 4, "SLURM goes on without it"

    locked = submit(tmp_path, *chain)
    assert locked.finish(60) != 0
    assert "--unlock" in locked.output
    cluster.ask("scancel", *first.queue("RUNNING", "PENDING"))
    submit(tmp_path, *chain, "--unlock").succeed(60)

    (tmp_path / "go").touch()
    second = submit(tmp_path, *chain)
    second.succeed(180)
    written = {(tmp_path / "done" / str(number)).read_text().strip() for number in range(4)}
    assert written == set(second.submitted)


@pytest.fixture(scope="module")
def done(trouble):
    """What every trouble's last attempt wrote, as words."""
    trouble.succeed(600)
    return {
        path.name: dict(word.split("=") for word in path.read_text().split())
        for path in (trouble.folder / "done").iterdir()
    }


@pytest.mark.parametrize(
    ("case", "attempt"), [("cancelled", "2"), ("over_time", "2"), ("over_memory", "2"), ("flaky", "3")]
)
def test_a_job_that_met_trouble_is_submitted_again_with_more(done, case, attempt):
    given = done[case]
    assert given["attempt"] == attempt
    first = {"over_time": (1000, 1), "over_memory": (700, 5)}.get(case, (1000, 5))
    asked = [1 if case == "over_time" else int(attempt), 1 if case == "over_memory" else int(attempt)]
    memory = first[0] * int(attempt)
    minutes = first[1] * int(attempt)
    assert (int(given["memory"]), int(given["minutes"])) == (memory, minutes), asked


def test_slurm_says_why_it_ended_a_job(trouble, done):
    states = {
        case: [
            trouble.cluster.ask("squeue", "--noheader", f"--jobs={log.stem}", "--states=all", "--format=%T").strip()
            for log in sorted((trouble.folder / "logs" / "slurm" / f"rule_{case}").rglob("*.log"), key=by_number)
        ]
        for case in ("cancelled", "over_time", "over_memory", "flaky")
    }
    assert states == {
        "cancelled": ["CANCELLED", "COMPLETED"],
        "over_time": ["TIMEOUT", "COMPLETED"],
        "over_memory": ["FAILED", "COMPLETED"],
        "flaky": ["FAILED", "FAILED", "COMPLETED"],
    }
    (killed, _) = sorted((trouble.folder / "logs/slurm/rule_over_memory").rglob("*.log"), key=by_number)
    assert "memory" in killed.read_text()


def by_number(log):
    return int(log.stem)


def test_a_rule_that_asks_for_a_card_gets_one_of_its_own_and_no_other_rule_does(done):
    assert {done["card_0"]["cards"], done["card_1"]["cards"]} == {"0", "1"}
    assert {done["card_0"]["partition"], done["card_1"]["partition"]} == {"gpu"}
    assert done["no_card"] == {"cards": "", "partition": "main"}
