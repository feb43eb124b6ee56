"""Training many toy networks at once against one at a time; run by hand, with nothing else running.

    python benchmarks/superposition.py [--threads 1] [--rounds 5]

The default sweep's task and sizes (m = 16 features, d = 16, one block, batches of 64). Equal total work: the
same networks make the same number of steps in one stack and one after another, and the parameters that come
out are compared. The two ways take turns, round by round, and the best round of each counts, so what else the
machine does hits both alike. Then the cost of a step against the number of cells in the stack. Prints two
tables, writes nothing.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

COMPARED, STEPS = 48, 64
CELLS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SPEC = {"batch": 64, "learning_rate": 0.003}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    from counterprobe import superposition_trained as toys

    torch.set_num_threads(options.threads)

    def networks(count):
        return [toys.Cell(m=16, d=16, s=2.0, depth=1, seed=seed) for seed in range(count)]

    def together(count):
        return toys.train(networks(count), SPEC | {"steps": STEPS})[1].parameters

    def alone(count):
        parts = [toys.train([cell], SPEC | {"steps": STEPS})[1].parameters for cell in networks(count)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def timed(run, count):
        start = time.perf_counter()
        result = run(count)
        return time.perf_counter() - start, result

    together(2)
    best = {"one at a time": float("inf"), "one stack": float("inf")}
    for _ in range(options.rounds):
        for name, run in (("one at a time", alone), ("one stack", together)):
            seconds, result = timed(run, COMPARED)
            best[name] = min(best[name], seconds)
            if name == "one at a time":
                separate = result
    difference = max(float((result[name] - separate[name]).abs().max()) for name in result)
    print(f"{COMPARED} networks, {STEPS} steps each, {options.threads} thread(s), load {os.getloadavg()[0]:.1f}")
    for name, seconds in best.items():
        rate = COMPARED * STEPS / seconds
        print(f"  {name:14} {seconds:7.2f} s  {rate:9.0f} network steps/s")
    ratio = best["one at a time"] / best["one stack"]
    print(f"  ratio {ratio:.1f}; weights differ by {difference:.1e} at most")
    print("cells   ms a step   µs a step and cell")
    for count in CELLS:
        seconds = min(timed(together, count)[0] for _ in range(options.rounds)) / STEPS
        print(f"{count:5}  {1e3 * seconds:9.2f}  {1e6 * seconds / count:15.1f}")


if __name__ == "__main__":
    main()
