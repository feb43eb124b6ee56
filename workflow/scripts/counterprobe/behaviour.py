"""What the model says itself: of the two tokens that a feature decides, is the right one the more likely?

Every basic feature of a generated design has a later token that depends on it (true/false, She/He, ...). This is the
model's own accuracy, with no probe: a feature it answers right must be in it somewhere, one it cannot answer need not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from counterprobe import checkpoints, designs, extraction, language_model, statistics, tables, tokenization
from counterprobe.designs import Design
from counterprobe.revisions import step_of


def measure(
    checkpoint: str | Path, design: Design, spec: Mapping[str, Any], cell: Mapping[str, str], *, device: str
) -> pd.DataFrame:
    """One row per read-out and choice of BOS: accuracy of the model's own answers, level .5, ties counted as 1/2.

    Score `log_odds`: mean log P(right) − log P(wrong), in nats. `cell` names model, revision, weights and design.
    """
    source = checkpoints.open_checkpoint(checkpoint)
    tokenizer = tokenization.load_tokenizer(source)
    design = extraction.readable(design, tokenizer, spec["design"]["unreadable"])
    model = language_model.load(source, device=device)
    rng = np.random.default_rng(0)
    settings = spec["statistics"]
    readouts = list(design.readouts.values())
    odds = {}
    for bos in spec["activations"]["bos"]:
        # All read-outs at once: one is asked for on the way to the next.
        together = language_model.answers(
            model,
            tokenizer,
            [prefix for readout in readouts for prefix in readout.prefixes],
            [word for readout in readouts for word in readout.positive],
            [word for readout in readouts for word in readout.negative],
            bos=bos,
        )
        odds[bos] = together.reshape(len(readouts), -1)
    rows = []
    for place, target in enumerate(design.readouts):
        items, carriers = statistics.inference_units(design, target)
        weights = statistics.two_way_weights(items, carriers, settings["resamples"], rng, design.strata)
        units = statistics.fewest_units(items, carriers)
        truth = np.where(designs.parity(design, target), 1.0, -1.0)
        for bos in spec["activations"]["bos"]:
            right = truth * odds[bos][place]
            for score, values, level in (
                ("accuracy", (np.sign(right) + 1) / 2, 0.5),
                ("log_odds", right, 0.0),
            ):
                interval = statistics.bootstrap(values[:, None], weights, settings["confidence"], units)
                rows.append(
                    {
                        **tables.NOT_APPLICABLE,
                        **cell,
                        "step": step_of(cell["revision"]),
                        "bos": bos,
                        "target": target,
                        "score": score,
                        "level": level,
                        "estimate": interval.estimate[0],
                        "lower": interval.lower[0],
                        "upper": interval.upper[0],
                        "n_texts": len(design.texts),
                        "n_groups": units,
                    }
                )
    return tables.frame(rows)
