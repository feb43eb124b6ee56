"""The whole geometry and exact inference of one model at one revision: 5 layers × 15 targets at one read position.

    OMP_NUM_THREADS=1 python benchmarks/geometry.py [--layers 5] [--width 128] [--items 96]

96 items × 16 texts (1,536) in 128 dimensions, planted so that every number is defined: an effect for each parity, items,
names, and noise. Everything `measure_geometry` writes: U-statistics and jackknife intervals of every target, gain,
cosines and parallelism; cross-condition probes, dichotomies and margins over the folds, with 1,000 two-way bootstrap
resamples; and the sign-flip tests that stand in the table of probes. Prints wall and processor seconds, first run and
best of the rest; writes nothing.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

from counterprobe import designs, geometry, statements, statistics
from counterprobe.activations import Store

SPEC = {
    "probes": {"penalties": [0.0001, 0.001, 0.01, 0.1, 1.0], "dichotomies": 64, "outer_folds": 4, "seed": 0},
    "statistics": {"resamples": 1000, "confidence": 0.95},
    "design": {"protocols": ["carriers", "items"]},
}
CELL = {"model": "planted", "revision": "step1", "weights": "trained", "design": "factorial"}
RESOURCES = Path(__file__).parents[1] / "workflow" / "resources"


def planted(design: designs.Design, width: int, layer: int) -> np.ndarray:
    """Item and name vectors, effects that fall with the order of the parity, noise."""
    rng = np.random.default_rng(layer)
    x = rng.standard_normal((len(design.item_names), width))[design.items]
    x += rng.standard_normal((2 * (design.carriers["speaker"].max() + 1), width))[
        2 * design.carriers["speaker"] + design.factors["speaker"]
    ]
    for target in designs.targets(design):
        size = 0.6 ** target.count("^")
        x += size * np.where(designs.parity(design, target), 1, -1)[:, None] * rng.standard_normal(width)
    return (x + rng.standard_normal(x.shape)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--items", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    topics = {"cities": options.items // 2, "animals": options.items // 2}
    world = statements.world({"topics": topics, "classes": 8, "carriers": 16, "seed": 0}, RESOURCES)
    design = statements.factorial("factorial", {"blocks": 4, "seed": 0}, world)
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for layer in range(options.layers):
            np.save(Path(folder) / f"{layer}.npy", planted(design, options.width, layer))
            files["kept", 0, "period", False, layer] = f"{layer}.npy"
        store = Store(
            Path(folder),
            len(design.texts),
            options.width,
            ("period",),
            (False,),
            tuple(range(options.layers)),
            (("kept", 0),),
            files,
        )
        seconds = []
        for _ in range(options.repeats):
            before = np.array([time.perf_counter(), time.process_time()])
            rows = geometry.measure(store, design, SPEC, CELL, device="cpu")
            middle = np.array([time.perf_counter(), time.process_time()])
            for layer in store.layers:
                statistics.contrast_tests(store.matrix("period", False, layer), design, 4000, np.random.default_rng(0))
            after = np.array([time.perf_counter(), time.process_time()])
            seconds.append([middle - before, after - middle])
    first, best = seconds[0], np.min(seconds[1:], axis=0)
    n_targets = len(designs.targets(design))
    print(
        f"{options.layers} layers × {n_targets} targets, {len(design.texts)} texts, d {options.width}: {len(rows)} rows; "
        f"{torch.get_num_threads()} thread(s); load average {os.getloadavg()[0]:.1f}"
    )
    for name, part in (("geometry", 0), ("sign-flip tests", 1)):
        print(
            f"{name}: {best[part][0]:.2f} s wall, {best[part][1]:.2f} s processor "
            f"(first run {first[part][0]:.2f}, {first[part][1]:.2f})"
        )


if __name__ == "__main__":
    main()
