"""What a person sees of a job that fails: the rule, its log and how that ends, each said once."""

import re


def test_each_failure_is_told_once_and_in_the_end(fresh_checkout):
    checkout = fresh_checkout()
    scripts = checkout.root / "workflow/scripts"
    (scripts / "train_model.py").write_text("import os\n\nos.kill(os.getpid(), 9)\n")
    broken = (scripts / "write_design.py").read_text().replace("    designs.write(", "    [][9]\n    designs.write(")
    (scripts / "write_design.py").write_text(broken)
    done = checkout.snakemake(
        "--configfile", "config/smoke.yaml", "--keep-going", "--until", "train_model", "write_design"
    )
    assert done.returncode != 0
    logs = "results/smoke/logs"
    assert (
        f"train_model was killed (signal 9); signal 9 is often a lack of memory\n  log: {logs}/train_model/tiny.log"
        in (done.stdout)
    )
    told = re.search(rf"write_design failed\n  log: {logs}/write_design/(\w+)\.log\n((?:    .*\n)+)", done.stdout)
    assert "Traceback" in told[2]
    assert told[2].rstrip().endswith("IndexError: list index out of range")
    assert len(told[2].splitlines()) <= 20
    for noise in ("RuleException", "CalledProcessError", "Error in rule", "Look above"):
        assert noise not in done.stdout


def test_an_error_of_the_user_is_one_line_and_not_repeated(fresh_checkout):
    done = fresh_checkout().snakemake("--configfile", "config/kill.yaml", "--until", "register_directory")
    assert done.returncode != 0
    assert done.stdout.count("little-model: no such folder") == 1
    assert "register_directory failed\n  log: results/kill/logs/register_directory/little/main.log\n" in done.stdout
