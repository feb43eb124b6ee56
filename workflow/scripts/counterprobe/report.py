"""The report: one HTML file that needs nothing but itself, from the tables, figures and notebooks of an experiment.

Everything is put into the file: figures and the rows behind them as data: addresses, styles and scripts as text. It asks
no network for anything; pages that claims link to are only linked. Nothing is computed here but counts and sums.

Of an executed notebook the page shows the words and, folded, the code; the image is the figure's own file. The cell that
Snakemake puts in front (it holds paths of the machine) is left out.

Pitfalls: HTML that a table brings along is shown as text (jinja2 escapes); a figure whose notebook has no log keeps its
place without words. The file grows with the
figures: a third more than their PNGs.
"""

from __future__ import annotations

import base64
import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from counterprobe import checksum, ledger, readme, spec
from counterprobe.progress import UserError

TEMPLATE = Path(__file__).resolve().parents[2] / "report" / "report.html.j2"
SCRIPTS = Path(__file__).resolve().parents[1]
ENVIRONMENTS = Path(__file__).resolve().parents[3] / "envs"
PRINTED = Path(__file__).resolve().parents[3] / "docs" / "verdicts.csv"
VERDICTS = ("supported", "contradicted", "inconclusive", "not run")
INJECTED = "snakemake-job-properties"
# What the judged targets say first, in this order.
ROLES = ("pre-registered", "needed XOR", "needless XOR", "basic feature")
# Figures in the order in which their questions follow from each other; others come after, by name.
QUESTIONS = (
    *("verdicts", "layers_by_step", "ladder", "leak", "capacity", "needed", "geometry", "mechanisms", "steering"),
    *("embedding", "neurons", "layers", "dictionaries", "perturbations", "rare_features"),
)


@dataclass(frozen=True)
class Figure:
    """One figure: its place below figures/, what it shows in words, and everything needed to draw it again."""

    name: str
    title: str
    words: str
    code: str
    image: str
    rows: str
    target: str

    @property
    def anchor(self) -> str:
        return "figure-" + re.sub(r"\W+", "-", self.name)


def render(results: str | Path, config: Mapping[str, Any], overlays: Sequence[str]) -> str:
    """The page of the experiment in folder `results`. UserError names what is missing.

    config: the complete configuration; overlays: the files that it was made of beside config.yaml, for the commands.
    """
    results = Path(results)
    every = {path.stem: path for path in sorted((results / "tables").glob("*.parquet"))}
    for needed in ("claims", "claim_legs"):
        if needed not in every:
            raise UserError(f"{results}/tables/{needed}.parquet: no such file; run the experiment first")
    claims, legs = (_rows(every[name]) for name in ("claims", "claim_legs"))
    models = config["run"]["models"]
    figures = sorted(_figures(results), key=lambda figure: _place(figure.name, models))
    targets = _targets(every, models, config["activations"]["primary_position"])
    about = ledger.about()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "interval": _interval, "chance": _chance}
    environment.filters |= {"verdict_class": lambda v: v.replace(" ", "-")}
    return environment.get_template(TEMPLATE.name).render(
        experiment=config["experiment"],
        claims=[_claim(row, legs, every, config, about, figures) for row in claims],
        counts=counts(claims),
        verdicts=VERDICTS,
        families=sorted({row["family"] for row in claims}),
        headline=_headline(targets, config),
        targets=targets,
        first_roles=ROLES[:2],
        figures=figures,
        groups=_grouped(figures),
        audit=_audit(every),
        calibration=_rows(every["calibration"]) if "calibration" in every else [],
        cost=list(_cost(results / "benchmarks")),
        tables=[{"name": name, "digest": _digest(path), "size": path.stat().st_size} for name, path in every.items()],
        config=json.dumps(config, indent=1, ensure_ascii=False, sort_keys=True),
        command=_command(overlays),
        results=results.as_posix(),
        behind=readme.behind(PRINTED.read_text(encoding="utf-8"), config) if PRINTED.is_file() else "",
    )


def counts(claims: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many claims there are of each verdict; sanity checks and questions stand beside and are not counted."""
    counted = [row for row in claims if row["kind"] in ("claim", "optional")]
    by = {verdict: sum(row["verdict"] == verdict for row in counted) for verdict in VERDICTS}
    sanity = [row for row in claims if row["kind"] == "sanity"]
    return {
        **by,
        "run": sum(row["verdict"] != "not run" for row in counted),
        "all": len(counted),
        "underpowered": sum(bool(row["underpowered"]) for row in counted),
        "sanity": len(sanity),
        "sane": sum(row["verdict"] == "supported" for row in sanity),
        "insane": sum(row["verdict"] == "contradicted" for row in sanity),
    }


def cells(notebook: str | Path) -> Iterator[tuple[str, str]]:
    """(kind, source) of the cells that a person wrote: without the one Snakemake injects, and without outputs."""
    content = json.loads(Path(notebook).read_text(encoding="utf-8"))
    for cell in content["cells"]:
        source = "".join(cell["source"])
        injected = INJECTED in cell.get("metadata", {}).get("tags", []) or "snakemake preamble" in source[:80]
        if source.strip() and not injected:
            yield cell["cell_type"], source


# --- figures ------------------------------------------------------------------------------------------------


def _figures(results: Path) -> Iterator[Figure]:
    from nbconvert.filters import markdown2html

    for image in sorted((results / "figures").rglob("*.png")):
        name = image.relative_to(results / "figures").with_suffix("").as_posix()
        notebook = _notebook(results / "logs", name)
        written = list(cells(notebook)) if notebook else []
        words = "\n\n".join(source for kind, source in written if kind == "markdown")
        heading = re.match(r"#\s+(.*)", words)
        rows = image.with_suffix(".csv")
        yield Figure(
            name=name,
            title=heading[1].strip() if heading else name,
            words=markdown2html(words[heading.end() :] if heading else words),
            code="\n\n".join(source for kind, source in written if kind == "code"),
            image=_address(image, "image/png"),
            rows=_address(rows, "text/csv") if rows.is_file() else "",
            target=image.as_posix(),
        )


def _place(name: str, models: Sequence[str]) -> tuple[int, str, int, str]:
    """Where a figure stands: by what it shows, then by model, the first of the run first."""
    *folders, kind = name.split("/")
    if folders and folders[0] not in models:
        kind = folders[0]
    return (_rank(QUESTIONS, kind), kind, _rank(models, folders[0] if folders else ""), name)


def _rank(known: Sequence[str], name: str) -> int:
    return known.index(name) if name in known else len(known)


def _notebook(logs: Path, name: str) -> Path | None:
    """The log of the rule that drew a figure: draw_FIGURE/MODEL/DESIGN, or draw_FOLDER/FIGURE where one draws several."""
    *folders, figure = name.split("/")
    places = ["/".join([f"draw_{figure}", *folders])]
    if folders:
        places += ["/".join([f"draw_{folders[0]}", *folders[1:], figure]), f"draw_{figure}/{folders[-1]}"]
    for place in places:
        path = logs / f"{place}.ipynb"
        if path.is_file():
            return path
    return None


def _grouped(figures: Sequence[Figure]) -> dict[str, list[Figure]]:
    """Figures by what they show (their last name), those of one kind side by side."""
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        groups.setdefault(figure.title, []).append(figure)
    return groups


def _address(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


# --- tables -------------------------------------------------------------------------------------------------


def _rows(path: Path) -> list[dict[str, Any]]:
    return checksum.read_parquet(path).to_pandas().to_dict("records")


def _digest(path: Path) -> str:
    return spec.digest(path.read_bytes())[:12]


def _claim(
    row: Mapping[str, Any],
    legs: Sequence[Mapping[str, Any]],
    tables: Mapping[str, Path],
    config: Mapping[str, Any],
    about: Mapping[str, Mapping[str, Any]],
    figures: Sequence[Figure],
) -> dict[str, Any]:
    """A claim's row with its legs, its figure, and the configuration and code that its tables come from."""
    own = [leg for leg in legs if leg["claim"] == row["claim"]]
    made = [about["tables"][name] for name in dict.fromkeys(leg["table"] for leg in own) if name in about["tables"]]
    sections = {key: config[key] for entry in made for key in entry["config"] if key in config}
    scripts = list(dict.fromkeys(script for entry in made for script in entry["scripts"]))
    scripts = [script for script in scripts if (SCRIPTS / script).is_file()]
    claim = about["claims"].get(row["claim"], {})
    return {
        **row,
        "page": claim.get("page", ""),
        "checkpoint": claim.get("checkpoint", ""),
        "legs": own,
        "drawn": next((figure for figure in figures if figure.name == row["figure"]), None),
        "slice": json.dumps(sections, indent=1, ensure_ascii=False, sort_keys=True) if sections else "",
        "code": [(script, code_digest(script)) for script in scripts],
        "numbers": _numbers(own) if own else "",
        "artefacts": [(name, _digest(tables[name])) for name in row["tables"].split(", ") if name in tables],
    }


def _numbers(legs: Sequence[Mapping[str, Any]]) -> str:
    """What a claim rests on, as the address of a CSV: a row a criterion."""
    written = pd.DataFrame(legs).to_csv(index=False, lineterminator="\n")
    return f"data:text/csv;base64,{base64.b64encode(written.encode()).decode()}"


def code_digest(script: str) -> str:
    """Digest of a script and of every library module that it reaches, as its rule has it."""
    return spec.code_digest(SCRIPTS / script, SCRIPTS / "counterprobe", ENVIRONMENTS / "torch.yaml")[:12]


def _targets(tables: Mapping[str, Path], models: Sequence[str], position: str) -> list[dict[str, Any]]:
    """READ and USE of the targets, the pre-registered one first; the primary position and the first model come first."""
    if "verdicts" not in tables:
        return []
    rank = {role: place for place, role in enumerate(ROLES)}
    rows = _rows(tables["verdicts"])
    return sorted(
        rows,
        key=lambda row: (
            *(rank.get(row["role"], len(rank)), row["position"] != position, row["position"]),
            *(_rank(models, row["model"]), row["target"]),
        ),
    )


def _headline(targets: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The pre-registered target of the first model, where figures of one position are read."""
    position = config["activations"]["primary_position"]
    return [
        row
        for row in targets
        if (row["role"], row["model"], row["position"]) == ("pre-registered", config["run"]["models"][0], position)
    ]


def _audit(tables: Mapping[str, Path]) -> dict[str, list[dict[str, Any]]]:
    """What the audits of designs found beyond ok and information, by the kind of finding."""
    if "audit" not in tables:
        return {}
    rows = pd.DataFrame(_rows(tables["audit"]))
    told = rows[~rows.verdict.isin(["ok", "information"])]
    found: dict[str, list[dict[str, Any]]] = {}
    for key, group in told.groupby(["verdict", "design", "protocol", "message"], sort=True):
        row = dict(zip(("verdict", "design", "protocol", "message"), key, strict=True))
        found.setdefault(row["verdict"], []).append(row | {"targets": ", ".join(group.target.unique())})
    return found


def _cost(benchmarks: Path) -> Iterator[dict[str, Any]]:
    """What every rule took, from the benchmark files of its jobs: jobs, wall seconds in all, memory of the largest."""
    spent: dict[str, list[tuple[float, float]]] = {}
    for path in sorted(benchmarks.rglob("*.tsv")):
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t"):
                rule = path.relative_to(benchmarks).parts[0].removesuffix(".tsv")
                memory = float(row["max_rss"]) if row["max_rss"] not in ("-", "NA", "") else 0.0
                spent.setdefault(rule, []).append((float(row["s"]), memory))
    for rule, jobs in sorted(spent.items(), key=lambda item: -sum(seconds for seconds, _ in item[1])):
        yield {
            "rule": rule,
            "jobs": len(jobs),
            "seconds": sum(seconds for seconds, _ in jobs),
            "memory": max(memory for _, memory in jobs),
        }


def _command(overlays: Sequence[str]) -> str:
    return "snakemake --cores 1" + "".join(f" --configfile {path}" for path in overlays)


# --- numbers as a person reads them -------------------------------------------------------------------------


def _number(value: float) -> str:
    if value is None or value != value:
        return "–"
    if value != 0 and abs(value) < 0.001:
        return f"{value:.0e}"
    # Zero has a sign, which nobody wants to read.
    return f"{value + 0.0:.3f}".rstrip("0").rstrip(".") if abs(value) < 1000 else f"{value:,.0f}"


def _chance(p: float) -> str:
    """A p-value; how small it is beyond all doubt says nothing more."""
    return "< 0.0001" if p < 0.0001 else _number(p)


def _interval(row: Mapping[str, Any]) -> str:
    """estimate [lower, upper]; the estimate alone where there is no interval."""
    if row["estimate"] != row["estimate"]:
        return "–"
    number = _number(row["estimate"])
    return number if row["lower"] != row["lower"] else f"{number} [{_number(row['lower'])}, {_number(row['upper'])}]"
