"""Write requirements.lock and the conda environments from envs/requirements.in and envs/torch.txt.

    python envs/lock.py              keep the locked versions where requirements.in allows
    python envs/lock.py --upgrade    move everything to the newest versions it allows

One lock serves Python 3.11 to 3.13 on Linux and macOS: the whole closure with a SHA-256 for every file,
installed with `pip install --no-deps --require-hashes`. torch and the packages that only a CUDA build of it
brings (triton, nvidia-*, cuda-*) are left out: pip installs them first, from envs/torch.txt, in whichever
build the machine can see. The lock holds no index, host or path. Needs `uv` (pip install uv) and the network.

A conda environment is Python and pip from conda-forge and the torch pin. Everything else is in the
post-deploy script, as the lock's own lines in a here-document: Snakemake hashes that script, and would not
hash a requirements file.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LOCK = FOLDER.parent / "requirements.lock"
REQUIREMENTS = FOLDER / "requirements.in"
TORCH = FOLDER / "torch.txt"

PYTHON = "3.11"
BROUGHT_BY_TORCH = re.compile(r"^(torch|triton|nvidia-.*|cuda-.*)$")

# What the jobs of an environment import; the lock has the versions. The ones with torch get it in the YAML's
# pip section.
ENVIRONMENTS = {
    "torch": (
        "beartype",
        "concept-erasure",
        "filelock",
        "httpx2",
        "huggingface-hub",
        "jaxtyping",
        "numpy",
        "pandas",
        "pyarrow",
        "safetensors",
        "scikit-learn",
        "scipy",
        "threadpoolctl",
        "tokenizers",
        "torch",
        "tqdm",
        "transformer-lens",
        "transformers",
    ),
    "plots": (
        "ipykernel",
        "jaxtyping",
        "jinja2",
        "jsonschema",
        "matplotlib",
        "nbconvert",
        "numpy",
        "pandas",
        "papermill",
        "pyarrow",
        "pygments",
        "pyyaml",
        "scipy",
        "seaborn",
        "threadpoolctl",
        "tqdm",
    ),
    "hub": (
        "filelock",
        "httpx2",
        "huggingface-hub",
        "numpy",
        "pandas",
        "pyarrow",
        "safetensors",
        "threadpoolctl",
        "tqdm",
    ),
}
PURPOSE = {
    "torch": "training, activations, probes and everything else that computes",
    "plots": "notebooks and tables",
    "hub": "downloads and the registration of checkpoints",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that requirements.in allows")
    arguments = parser.parse_args()

    torch = torch_pin()
    kept = LOCK.read_text() if LOCK.exists() and not arguments.upgrade else ""
    resolved = compile_(f"{torch}\n{REQUIREMENTS.read_text()}", kept)
    locked = {name: block for name, block in parse(resolved).items() if not BROUGHT_BY_TORCH.match(name)}
    LOCK.write_text(render_lock(locked, torch))
    print(f"{LOCK.name}: {len(locked)} packages")

    for environment, names in ENVIRONMENTS.items():
        wanted = "\n".join(torch if name == "torch" else name for name in names)
        closure = sorted(set(parse(compile_(wanted, LOCK.read_text()))) & set(locked))
        yaml, script = environment_files(environment)
        yaml.write_text(render_yaml(environment, torch))
        script.write_text(render_post_deploy(environment, {name: locked[name] for name in closure}))
        script.chmod(0o755)
        print(f"{yaml.name}, {script.name}: {len(closure)} packages")


def torch_pin() -> str:
    return TORCH.read_text().strip()


def environment_files(environment: str) -> tuple[Path, Path]:
    return FOLDER / f"{environment}.yaml", FOLDER / f"{environment}.post-deploy.sh"


def compile_(requirements: str, preferred: str) -> str:
    """uv's resolution for every platform; `preferred` is a lock whose versions are kept where possible."""
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if uv is None:
        sys.exit("lock.py: uv is missing; pip install uv")
    # A wheel that only this machine has must not decide which versions are locked.
    environment = {key: value for key, value in os.environ.items() if key != "UV_FIND_LINKS"}
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "requirements.in"), Path(folder, "requirements.lock")
        source.write_text(requirements)
        output.write_text(preferred)
        options = ["--universal", "--fork-strategy", "fewest", "--python-version", PYTHON]
        options += ["--generate-hashes", "--no-header", "--no-annotate", "--no-config", "--quiet"]
        subprocess.run([uv, "pip", "compile", *options, source, "--output-file", output], check=True, env=environment)
        return output.read_text()


def parse(lock: str) -> dict[str, str]:
    """Normalised package name -> its lines, from `name==version` to the last hash."""
    blocks: dict[str, str] = {}
    for block in re.split(r"\n(?=[A-Za-z0-9])", "\n" + re.sub(r"(?m)^#.*\n", "", lock)):
        if block.strip():
            blocks[re.sub(r"[-_.]+", "-", block.split("==")[0].strip()).lower()] = block.strip("\n") + "\n"
    return blocks


def render_lock(blocks: dict[str, str], torch: str) -> str:
    return (
        "# Written by envs/lock.py from envs/requirements.in.\n"
        f"# Install {torch} first (envs/torch.txt), then this with:\n"
        "# pip install --no-deps --require-hashes -r requirements.lock\n"
        f"{''.join(blocks.values())}"
    )


def render_yaml(environment: str, torch: str) -> str:
    lines = [
        f"# Written by envs/lock.py: {PURPOSE[environment]}.",
        f"# Everything that is not here comes, with hashes, from {environment}.post-deploy.sh.",
        "channels:",
        "  - conda-forge",
        "  - nodefaults",
        "dependencies:",
        f"  - python ={PYTHON}",
        "  - pip",
    ]
    if "torch" in ENVIRONMENTS[environment]:
        lines += ["  - pip:", f"      - {torch}"]
    return "\n".join(lines) + "\n"


def render_post_deploy(environment: str, blocks: dict[str, str]) -> str:
    return (
        "#!env bash\n"
        f"# Written by envs/lock.py: the lines of requirements.lock that envs/{environment}.yaml needs.\n"
        "set -euo pipefail\n"
        "pip install --no-deps --require-hashes --disable-pip-version-check -r /dev/stdin <<'LOCK'\n"
        f"{''.join(blocks.values())}"
        "LOCK\n"
    )


if __name__ == "__main__":
    main()
