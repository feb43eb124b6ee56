"""`snakemake cost`: the jobs that Snakemake would run, and what the smoke experiment took."""

import csv
import re

import pytest


def planned(said: str) -> dict[str, int]:
    """Jobs of each rule in a dry run's table."""
    table = re.search(r"^-+ +-+\n(.*?)^total", said, flags=re.MULTILINE | re.DOTALL)[1]
    return {rule: int(jobs) for rule, jobs in re.findall(r"^(\w+) +(\d+)$", table, flags=re.MULTILINE) if rule != "all"}


def previewed(said: str) -> dict[str, int]:
    return {rule: int(jobs) for rule, jobs in re.findall(r"^(\w+) +(\d+) +\d+ (?:s|min|h) ", said, flags=re.MULTILINE)}


@pytest.mark.parametrize(
    "overlay",
    [
        (),
        ("config/smoke.yaml",),
        ("config/pythia-70m.yaml",),
        ("config/kill.yaml",),
        ("config/own-model.yaml",),
        ("config/gpt2.yaml",),
        ("config/gpt2-sae.yaml",),
    ],
)
def test_the_preview_counts_the_jobs_that_would_run(fresh_checkout, overlay):
    checkout = fresh_checkout()
    arguments = ("--configfile", *overlay) if overlay else ()
    said = checkout.run("cost", *arguments)
    assert previewed(said) == planned(checkout.run("--dry-run", *arguments))
    # A second preview is one, too.
    assert "in all" in checkout.run("cost", *arguments)


@pytest.mark.slow
def test_the_smoke_experiment_took_what_was_said(smoke):
    said = smoke.run("cost", "--configfile", "config/smoke.yaml")
    seconds, memory = float(smoke.read("processor_seconds")), 0.0
    for path in (smoke.root / "results/smoke/benchmarks").rglob("*.tsv"):
        with open(path) as file:
            (row,) = csv.DictReader(file, delimiter="\t")
        memory = max(memory, float(row["max_rss"]) * 2**20)
    total = re.search(r"^in all +\d+ +(\d+) (s|min) +([\d.]+) GB +([\d.]+) MB$", said, flags=re.MULTILINE)
    cores = int(re.search(r"on (\d+) cores", said)[1])
    assert 0.5 < seconds / cores / (float(total[1]) * {"s": 1, "min": 60}[total[2]]) < 2
    assert 0.5 < memory / float(total[3]) / 1e9 < 2
    results = smoke.root / "results/smoke"
    data = ("activations", "training", "probes", "designs", "tables", "figures")
    size = sum(file.stat().st_size for folder in data for file in (results / folder).rglob("*") if file.is_file())
    assert 0.5 < size / float(total[4]) / 1e6 < 2
