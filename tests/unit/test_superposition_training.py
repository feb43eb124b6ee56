import pytest
import torch

from counterprobe import superposition_trained, superposition_training
from counterprobe.superposition_trained import Cell

SPEC = {"steps": 40, "batch": 16, "learning_rate": 0.01}


def quadratic(n, size=3):
    """A stack of networks that are vectors w with loss ‖w − x‖²; every step draws the same x."""
    target = torch.arange(n * size, dtype=torch.float32).reshape(n, size)
    start = torch.zeros(n, size)
    return (
        {"w": start},
        lambda count: target.expand(count, n, size),
        lambda p, x: (p["w"] - x).square().sum(dim=1),
    )


def test_networks_of_a_stack_learn_what_they_learn_alone():
    cells = [Cell(4, 8, 2.0, 1, 0), Cell(6, 5, 1.0, 1, 3), Cell(5, 7, 2.0, 1, 0)]
    _, together = superposition_trained.train(cells, SPEC)
    for index, cell in enumerate(cells):
        _, alone = superposition_trained.train([cell], SPEC)
        for name, value in alone.parameters.items():
            own = together.parameters[name][index]
            inside = tuple(slice(0, size) for size in value[0].shape)
            torch.testing.assert_close(own[inside], value[0], rtol=1e-4, atol=1e-5)
            padding = own.clone()
            padding[inside] = 0
            assert not padding.any(), f"padding of {name} has moved"
            assert (value[0] != 0).any()


def test_it_is_adam():
    start, draw, loss = quadratic(2)
    # The rate is constant in the first half of the steps.
    ours = superposition_training.train_stack(start, draw, loss, steps=21, learning_rate=0.1)
    weights = torch.zeros(2, 3, requires_grad=True)
    optimiser = torch.optim.Adam([weights], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda t: min(1.0, 1 - 0.9 * (2 * t / 21 - 1)))
    for _ in range(21):
        optimiser.zero_grad()
        loss({"w": weights}, draw(1)[0]).sum().backward()
        optimiser.step()
        scheduler.step()
    torch.testing.assert_close(ours.parameters["w"], weights.detach(), rtol=1e-5, atol=1e-6)


def test_a_run_that_diverges_says_so_and_leaves_its_neighbours_alone():
    start, draw, _ = quadratic(3)

    def loss(parameters, inputs):
        # The fourth power of a huge step is not a float any more.
        return (parameters["w"] - inputs).pow(4).sum(dim=1)

    rates = torch.tensor([0.1, 1e30, 0.1])
    ours = superposition_training.train_stack(start, draw, loss, steps=10, learning_rate=rates)
    calm = superposition_training.train_stack(start, draw, loss, steps=10, learning_rate=0.1)
    assert ours.reasons[1].startswith("diverged: the loss is not finite at step 1")
    assert ours.reasons[0] == ours.reasons[2] == ""
    for index in (0, 2):
        assert torch.equal(ours.parameters["w"][index], calm.parameters["w"][index])


def test_parameters_that_the_last_step_broke_are_a_divergence():
    start, draw, _ = quadratic(2)

    def loss(parameters, inputs):
        # The loss of the one step is finite, and its gradient at 0 is not.
        return torch.stack([parameters["w"][0].abs().sqrt().sum(), parameters["w"][1].square().sum()])

    ours = superposition_training.train_stack(start, draw, loss, steps=1, learning_rate=0.1)
    assert ours.reasons == ("diverged: a parameter is not finite after the last step", "")


def test_a_loss_that_rises_is_a_divergence():
    start, draw, loss = quadratic(1)
    ours = superposition_training.train_stack(start, draw, loss, steps=4, learning_rate=100.0)
    assert "rose from 5" in ours.reasons[0]


def test_frozen_parameters_do_not_move():
    start, draw, loss = quadratic(2)
    held = superposition_training.train_stack(
        start, draw, loss, steps=5, learning_rate=0.1, frozen={"w": [True, False]}
    )
    assert torch.equal(held.parameters["w"][0], start["w"][0])
    assert not torch.equal(held.parameters["w"][1], start["w"][1])
    assert not start["w"].any(), "the initial values are not to be changed"


@pytest.mark.parametrize("other", [(1, 2, 4), (1, 3, 3), (2, 2, 3)])
def test_generators_depend_on_every_part_of_their_key(other):
    def draw(*key):
        return torch.rand(4, generator=superposition_training.generator(*key))

    assert torch.equal(draw(1, 2, 3), draw(1, 2, 3))
    assert not torch.equal(draw(1, 2, 3), draw(*other))
