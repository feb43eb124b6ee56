"""The workflow and its profile on a real SLURM: what is submitted, what is retried, what an interruption leaves behind."""

import re
import threading
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

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
    first.until(lambda: list(folder.glob("results/smoke/logs/extract_activations/tiny/*/*/*.log")), 300)
    first.interrupt()
    first.finish(120)
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
    assert re.search(r"^rule train_model:", first.output, re.MULTILINE)
    assert not re.search(r"^(local)?rule (train_model|write_design|register_trained):", second.output, re.MULTILINE)
    assert second.queue("COMPLETED") == sorted(second.submitted, key=int)
    third = submit(folder, *SMOKE)
    assert "Nothing to be done" in third.succeed(120)


def test_every_job_that_is_not_local_went_through_sbatch(experiment):
    _, first, second, _ = experiment
    # Snakemake calls what it runs itself a localrule.
    assert set(re.findall(r"^localrule (\w+):", first.output + second.output, re.MULTILINE)) == {
        "all",
        "audit_design",
        "register_trained",
    }


def test_small_jobs_share_an_allocation_and_logs_are_where_a_person_looks(experiment):
    folder, _, second, _ = experiment
    logs = [next(folder.glob(f"logs/slurm/*/**/{number}.log")) for number in second.submitted]
    kinds = Counter(log.relative_to(folder / "logs" / "slurm").parts[0] for log in logs)

    def submitted(group):
        return sum(number for kind, number in kinds.items() if kind.startswith(f"group_{group}_"))

    # Snakemake names a group by its first rules.
    assert submitted("tables") == submitted("health") == 1, kinds
    assert 0 < submitted("figures") <= 3, kinds
    assert 0 < submitted("units") <= 5, kinds
    assert not [kind for kind in kinds if re.match("rule_(gather|draw|extract_activations|train_probes)", kind)]


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
    assert locked.finish(120) != 0
    assert "--unlock" in locked.output
    cluster.ask("scancel", *first.queue("RUNNING", "PENDING"))
    submit(tmp_path, *chain, "--unlock").succeed(120)

    (tmp_path / "go").touch()
    second = submit(tmp_path, *chain)
    second.succeed()
    written = {(tmp_path / "done" / str(number)).read_text().strip() for number in range(4)}
    assert written == set(second.submitted)


def by_number(log: Path) -> int:
    return int(log.stem)


@pytest.fixture(scope="module")
def done(trouble):
    """What every trouble's last attempt wrote, as words."""
    trouble.succeed(600)
    return {
        path.name: dict(word.split("=") for word in path.read_text().split())
        for path in (trouble.folder / "done").iterdir()
    }


@pytest.mark.parametrize(
    ("case", "attempt", "memory", "minutes"),
    [
        ("cancelled", 2, 2 * 1000, 2 * 5),
        ("over_time", 2, 2 * 1000, 2 * 1),
        ("over_memory", 2, 2 * 700, 2 * 5),
        ("flaky", 3, 3 * 1000, 3 * 5),
    ],
)
def test_a_job_that_met_trouble_is_submitted_again_with_more(done, case, attempt, memory, minutes):
    assert done[case] == {"attempt": str(attempt), "memory": str(memory), "minutes": str(minutes)}


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


def test_a_rule_that_asks_for_a_card_gets_one_of_its_own_and_no_other_rule_does(done):
    assert {done["card_0"]["cards"], done["card_1"]["cards"]} == {"0", "1"}
    assert {done["card_0"]["partition"], done["card_1"]["partition"]} == {"gpu"}
    assert done["no_card"] == {"cards": "", "partition": "main"}


def test_jobs_that_share_an_allocation_share_its_card(done):
    assert done["chain"]["reading"] == done["chain"]["probing"]
    assert done["chain"]["reads_on"] == done["chain"]["probes_on"]
    assert done["chain"]["reads_on"] in {"0", "1"}
