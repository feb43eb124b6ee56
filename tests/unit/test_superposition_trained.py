import pytest
import torch

from counterprobe import superposition_cells, superposition_trained
from counterprobe.superposition_trained import Cell

SPEC = {
    "base": {"m": 5, "d": 6, "s": 2, "depth": 1},
    "m": [4, 8],
    "d": [4, 9],
    "s": [2, 1],
    "depth": [2],
    "networks": 2,
    "steps": 30,
    "batch": 16,
    "learning_rate": 0.01,
    "items": 24,
    "penalty": 0.001,
    "dichotomies": 4,
    "learned": 10.0,
}


def test_one_factor_varies_at_a_time():
    cells = superposition_trained.plan(SPEC)
    settings = {(cell.m, cell.d, cell.s, cell.depth) for cell in cells}
    assert settings == {
        (5, 6, 2, 1),
        (4, 6, 2, 1),
        (8, 6, 2, 1),
        (5, 4, 2, 1),
        (5, 9, 2, 1),
        (5, 6, 1, 1),
        (5, 6, 2, 2),
    }
    assert len(cells) == 14


def test_the_residual_stream_is_that_of_the_formula():
    start = superposition_trained.initial([Cell(4, 5, 1.0, 2, 0)])
    x = torch.rand(1, 3, 8)
    h = x[0] @ start["embed"][0]
    for layer in (0, 1):
        into, bias = start[f"in_{layer}"][0], start[f"bias_{layer}"][0]
        h = h + torch.relu(h @ into + bias) @ start[f"out_{layer}"][0]
    torch.testing.assert_close(superposition_trained.residual(start, x)[0], h)
    said = h @ start["unembed"][0] + start["offset"][0]
    torch.testing.assert_close(superposition_trained.outputs(start, x)[0], said)


def test_training_lowers_the_loss():
    _, trained = superposition_trained.train([Cell(4, 8, 2.0, 1, 0)], SPEC | {"steps": 200})
    assert trained.last_loss < 0.3 * trained.first_loss


def test_the_sweep_has_every_cell_score_and_slope():
    table = superposition_trained.sweep(SPEC)
    cells = superposition_cells.cells(table)
    accuracies = cells[(cells.score == "accuracy") & (cells.target == "xor_needless")]
    assert set(accuracies.network) == {"trained", "init", "trained - init"}
    assert len(accuracies) == 7 * 3
    slopes = cells[(cells.score == "accuracy_slope") & (cells.target == "xor_needless") & (cells.network == "trained")]
    assert set(slopes.setting) == {"over m/d at fixed d", "over m/d at fixed m"}
    assert (slopes.n_networks == 2).all()
    assert (cells.excluded == 0).all()


def test_a_diverged_run_keeps_its_rows_and_its_initialisation():
    table = superposition_trained.sweep(SPEC | {"m": [], "d": [], "s": [], "depth": [], "learning_rate": 1e20})
    trained = table[table.network == "trained"]
    assert len(trained)
    assert trained[trained.score != "accuracy_slope"].reason.str.contains("diverged").any()
    assert trained.estimate.isna().all()
    init = table[(table.network == "init") & (table.score == "accuracy")]
    assert init.estimate.notna().all()
    differences = table[table.network == "trained - init"]
    assert differences.reason.str.contains("diverged: the loss is not finite").all()


def test_a_network_that_did_not_learn_the_task_says_nothing_of_an_xor():
    spec = SPEC | {"m": [], "d": [], "s": [], "depth": [], "networks": 2}
    errors = superposition_trained.sweep(spec)
    errors = errors[(errors.score == "rms_error") & (errors.network == "trained")].set_index("seed").estimate
    bar = float(errors.mean())
    table = superposition_trained.sweep(spec | {"learned": bar})
    xors = table[table.target.str.startswith("xor") & ~table.score.str.endswith("slope")]
    for seed, error in errors.items():
        of_seed = xors[xors.seed == seed]
        trained = of_seed[of_seed.network != "init"]
        assert (trained.reason.str.startswith("did not learn the task") == (error >= bar)).all()
        assert (of_seed[of_seed.network == "init"].reason == "").all()
    told = table[(table.score == "rms_error") & (table.network == "trained")]
    assert told.estimate.notna().all()


@pytest.mark.parametrize("score", ["accuracy", "interaction_ratio"])
def test_the_same_seed_gives_the_same_table(score):
    spec = SPEC | {"m": [], "d": [], "s": [], "depth": [], "networks": 1}
    first, second = superposition_trained.sweep(spec), superposition_trained.sweep(spec)
    assert first[first.score == score].equals(second[second.score == score])
