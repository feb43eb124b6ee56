"""Memory and run time that a job asks of a cluster, from the kind of its work and the size of its model.

    memory(work, N, attempt)  = attempt · (base + bytes_per_parameter · N)
    minutes(work, N, attempt) = attempt · (base + minutes_per_billion · N / 10⁹)

N is the number of parameters. A dense transformer has about 12 · layers · width² of them beside its embeddings (Kaplan
et al. 2020, arXiv 2001.08361, table 1), and reading T tokens takes about 2 · N · T operations. The coefficients are
requests, rounded up from measurements on small models so that a first attempt rarely fails; a job that was killed for
either limit is submitted again with twice, then three times as much. They limit nothing on a machine without a scheduler.

Pitfall: only the Snakefile imports this module, at planning time, so it must not need the network. The size of a model
on the hub is therefore what its repository's name says (pythia-1.4b), unless the configuration says it.

Stdlib only.
"""

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A hub model whose name does not tell: memory for this many parameters is found on any node of a cluster.
ASSUMED_PARAMETERS = 1_000_000_000
# Two Python processes of Snakemake and SLURM's own step stand beside a job's process in its allocation.
OVERHEAD_MB = 300


@dataclass(frozen=True)
class Work:
    """What one kind of job needs on its first attempt: MB and minutes, and how both grow with the model."""

    megabytes: int
    minutes: int
    bytes_per_parameter: int = 0
    minutes_per_billion: int = 0
    minutes_per_billion_on_card: int = 0


WORK = {
    # Seconds on tables.
    "table": Work(1200, 15),
    # A notebook and its kernel: two processes with pandas, one with matplotlib.
    "figure": Work(2200, 15),
    # Toy networks, planted representations: minutes, and independent of any model.
    "toy": Work(1700, 90),
    # float32 weights, gradients, two moments and a copy to write: 20 bytes a parameter.
    "training": Work(2000, 60, bytes_per_parameter=24, minutes_per_billion=6000, minutes_per_billion_on_card=600),
    # float32 weights, the randomised ones beside them, and one matrix's decomposition.
    "reading": Work(1500, 30, bytes_per_parameter=10, minutes_per_billion=240, minutes_per_billion_on_card=20),
    # Activations of one layer at a time; their width grows more slowly than the model.
    "probing": Work(2000, 60, bytes_per_parameter=1, minutes_per_billion=60, minutes_per_billion_on_card=30),
}


def memory(work: str, parameters: int, attempt: int) -> int:
    """MB to ask for. `work` is a key of WORK, `attempt` counts from 1."""
    need = WORK[work]
    return attempt * (OVERHEAD_MB + need.megabytes + math.ceil(need.bytes_per_parameter * parameters / 1e6))


def minutes(work: str, parameters: int, attempt: int, *, device: str) -> int:
    """Minutes of wall time to ask for, on `device` cpu or cuda."""
    need = WORK[work]
    slope = need.minutes_per_billion_on_card if device == "cuda" else need.minutes_per_billion
    return attempt * (need.minutes + math.ceil(slope * parameters / 1e9))


def parameters(model: Mapping[str, Any]) -> int:
    """Parameters of one entry of `models:` (validated), without the network and without reading weights."""
    if model["source"] == "train":
        shape = model["architecture"]
        return 12 * shape["layers"] * shape["width"] ** 2
    if model["source"] == "directory":
        return stored_parameters(model["path"])
    return model.get("parameters") or parameters_by_name(model["repo"]) or ASSUMED_PARAMETERS


@functools.cache
def stored_parameters(folder: str) -> int:
    """Numbers in the safetensors files of a folder, from their headers; 0 where there is no such folder yet.

    A file starts with the header's length (8 bytes, little-endian) and the header, JSON with a shape for every tensor:
    https://huggingface.co/docs/safetensors/index#format.
    """
    count = 0
    for path in Path(folder).glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        count += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return count


def parameters_by_name(repo: str) -> int | None:
    """The size that a repository's name ends a word with (70m, 1.4b, 774M), or None."""
    sizes = re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)([mb])(?![a-z\d])", repo.rpartition("/")[2], flags=re.IGNORECASE)
    if not sizes:
        return None
    number, unit = sizes[0]
    return round(float(number) * {"m": 1e6, "b": 1e9}[unit.lower()])
