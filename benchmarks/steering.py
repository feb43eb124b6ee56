"""A sweep of directions × coefficients × layers over one feature, batched from the steered layer on, against the naive one.

    OMP_NUM_THREADS=1 python benchmarks/steering.py [--texts 64] [--directions 4] [--coefficients 3] [--full]

The default model's shape with random weights, its texts, truth steered at its answer's own token. Naive: for every
direction, coefficient and layer one whole forward pass of every text with a hook. Batched: what `steering.measure` does.
Both say the answers and the neutral tokens, in one run: processor time, wall time, the largest difference of any log-odds.
`--full` times the batched sweep alone, for 12 directions × 9 coefficients × 5 layers on 512 texts. Writes nothing.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

from counterprobe import interventions, language_model, statements, steering, tokenization
from counterprobe.interventions import Places
from counterprobe.steering import Move

RESOURCES = Path(__file__).parents[1] / "workflow" / "resources"
LAYERS, WIDTH = 4, 128


def naive(sample: steering.Sample, readout: int, layer: int, moves: list[Move]) -> np.ndarray:
    """Log-odds [moves, texts] of the steered feature by whole passes."""
    found = np.empty((len(moves), len(sample.chosen)))
    for k, move in enumerate(moves):
        for group in sample.groups:
            site = group.sites[readout]
            signs = torch.as_tensor(sample.signs[readout][group.texts], dtype=torch.float32)[:, None, None]
            vector = torch.as_tensor(move.coefficient * move.along, dtype=torch.float32)
            columns = torch.tensor(
                sorted({column for _, column in group.asked} | {c for c in group.neutral if c >= site})
            )
            edit = interventions.add(-signs * vector)
            with torch.inference_mode(), interventions.applied(sample.model, {layer: edit}, Places(site, site)):
                said = sample.model(group.ids, use_cache=False, logits_to_keep=columns).logits
            said = said[:, columns.tolist().index(dict(group.asked)[readout])].double().numpy()
            rows = np.arange(len(group.texts))
            right, wrong = (said[rows, sample.words[readout][side, group.texts]] for side in (0, 1))
            found[k, group.texts] = right - wrong
    return found


def timed(work) -> tuple[float, float, object]:
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - processor, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--directions", type=int, default=4)
    parser.add_argument("--coefficients", type=int, default=3)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.full:
        options.texts, options.directions, options.coefficients = 512, 12, 9
    topics = {"cities": 48, "animals": 48}
    world = statements.world({"topics": topics, "classes": 8, "carriers": 16, "seed": 0}, RESOURCES)
    design = statements.factorial("factorial", {"blocks": 4, "seed": 0}, world)
    tokenizer = tokenization.word_level_tokenizer(statements.vocabulary(world))
    shape = language_model.Architecture(layers=LAYERS, width=WIDTH, heads=8)
    model = language_model.build(shape, tokenizer.get_vocab_size(), seed=0).eval().requires_grad_(False)
    sample = steering.Sample(model, tokenizer, design, np.arange(options.texts), [], bos=False)
    readout = list(design.readouts).index("negated^match")
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((options.directions, WIDTH))
    moves = [Move(vector, dose) for vector in vectors for dose in np.linspace(0.1, 1, options.coefficients)]
    layers = range(LAYERS + 1)

    def batched() -> list[np.ndarray]:
        return [sample.outcome(readout, steering.ANSWER, [layer], moves).log_odds[:, readout] for layer in layers]

    wall, processor, fast = timed(batched)
    size = f"{options.directions} directions x {options.coefficients} coefficients x {len(layers)} layers"
    print(f"{size}, {options.texts} texts: batched {wall:.1f} s by wall, {processor:.1f} s of processor")
    if not options.full:
        wall_naive, processor_naive, slow = timed(lambda: [naive(sample, readout, layer, moves) for layer in layers])
        gap = max(np.abs(a - b).max() for a, b in zip(fast, slow, strict=True))
        print(
            f"naive {wall_naive:.1f} s by wall, {processor_naive:.1f} s of processor; log-odds differ by {gap:.1e} at most"
        )
        print(f"ratio {wall_naive / wall:.1f} by wall, {processor_naive / processor:.1f} by processor time")


if __name__ == "__main__":
    main()
