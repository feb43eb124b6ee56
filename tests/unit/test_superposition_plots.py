import pandas as pd
import pytest

from counterprobe import (
    plots,
    superposition_cells,
    superposition_constructed,
    superposition_genericity,
    superposition_geometry,
    superposition_plots,
    superposition_redundancy,
    superposition_trained,
)

TRAINED = {"base": {"m": 4, "d": 6, "s": 1, "depth": 1}, "m": [5, 6], "d": [4, 8], "s": [], "depth": []}
TRAINED |= {
    "networks": 2,
    "steps": 20,
    "batch": 8,
    "learning_rate": 0.01,
    "items": 8,
    "penalty": 0.01,
    "dichotomies": 2,
    "learned": 100,
}
UNIVERSAL = {"m": 8, "widths": [16, 32, 64], "s": [2, 3], "pairs": 2, "contexts": 2, "networks": 2}
XOR = {"m": 8, "dimensions": [6], "widths": [8, 32, 64], "s": [2, 3], "pairs": 2, "contexts": 2, "networks": 2}
XOR |= {"probed": {"widths": [8, 32], "s": [3], "items": 8, "penalty": 0.01, "dichotomies": 2}}
DESIGNATED = {"base": {"m": 4, "d": 8, "s": 1, "p": 0.5}, "m": [], "d": [], "s": [], "p": [0, 1]}
DESIGNATED |= {"networks": 2, "items": 8, "penalty": 0.01, "dichotomies": 2}
INDICATOR = {
    "m": 8,
    "widths": [32, 64, 128],
    "s": [2],
    "varying": [2, 3],
    "pairs": 2,
    "contexts": 4,
    "networks": 2,
}
READOFFS = {
    "least_squares": [],
    "minimax": [{"m": 4, "d": 4, "s": 2}],
    "pairs": 1,
    "error": 0.25,
    "networks": 2,
}
LOSSES = {
    "m": 4,
    "s": 2,
    "widths": [4],
    "norms": [1, 2],
    "weightings": ["unweighted", "weighted"],
    "networks": 2,
}
LOSSES |= {"steps": 5, "batch": 8, "learning_rate": 0.01}
REDUNDANCY = {
    "cells": [[4, 1], [4, 2], [4, 4], [6, 1], [6, 2], [6, 4]],
    "layers": 2,
    "networks": 3,
    "train": 300,
}
REDUNDANCY |= {"test": 200, "pairs": 2, "penalty": 0.01}
GEOMETRY = {
    "base": {"m": 4, "d": 2, "density": 0.2},
    "densities": [0.2, 1],
    "data": ["independent", "exclusive"],
}
GEOMETRY |= {"sizes": [[6, 3]], "networks": 2, "steps": 20, "batch": 8, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def cells():
    parts = [
        superposition_trained.sweep(TRAINED),
        superposition_constructed.sweep({"universal": UNIVERSAL, "xor": XOR, "designated": DESIGNATED}),
        superposition_genericity.sweep({"indicator": INDICATOR, "readoffs": READOFFS, "losses": LOSSES}),
        superposition_redundancy.sweep(REDUNDANCY),
        superposition_geometry.sweep(GEOMETRY),
    ]
    return superposition_cells.cells(pd.concat(parts, ignore_index=True))


@pytest.mark.parametrize("name", superposition_plots.FIGURES)
def test_every_figure_is_drawn_with_its_prediction_and_its_rows(cells, name, tmp_path):
    figure, rows = superposition_plots.draw(name, cells)
    outputs = {kind: str(tmp_path / f"figure.{kind}") for kind in ("pdf", "png", "csv")}
    plots.save(figure, rows, outputs)
    assert len(pd.read_csv(outputs["csv"])) == (cells.experiment == name).sum()
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    lines = [line for axis in figure.axes for line in axis.lines]
    if name == "trained":
        titles = " ".join(axis.get_title() for axis in figure.axes)
        assert "interference:" in titles
        assert "for free:" in titles
    else:
        assert any(line.get_color() == plots.BLACK and line.get_linestyle() == "--" for line in lines)
