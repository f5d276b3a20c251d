"""Recipes by name: values that `preset=NAME` puts in the place of the defaults, and explicit ones override.

Each is one way of teaching a classifier that a project of its own once ran, in the words of a job's hyperparameters.
Knows names and texts alone; `hyperparameters` reads them as strictly as it reads a user's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NONE = "none"
"""The value of `preset` that stands for no recipe."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A recipe.

    Attributes:
        help: one sentence: what it is for, and what to try with it.
        values: hyperparameters as a user would write them, name -> text.
    """

    help: str
    values: Mapping[str, str]


PRESETS: Mapping[str, Preset] = {
    "densenet121": Preset(
        "A linear head on DenseNet-121 in a few epochs of large batches; batch-size=256 goes as well.",
        {
            "model": "densenet121",
            "trainable": "head",
            "epochs": "5",
            "batch-size": "128",
            "optimizer": "adam",
            "lr": "0.003",
            "schedule": "constant",
            "weight-decay": "0",
        },
    ),
    "resnet18": Preset(
        "A linear head on a small ResNet, quick enough to search widely; model=resnet34 and batch-size=256 or 512 go "
        "as well.",
        {
            "model": "resnet18",
            "trainable": "head",
            "epochs": "10",
            "batch-size": "128",
            "optimizer": "adam",
            "lr": "0.003",
            "schedule": "constant",
            "weight-decay": "0",
        },
    ),
    "resnet152": Preset(
        "A head with a hidden layer of 256 units and dropout on the deepest ResNet.",
        {
            "model": "resnet152",
            "trainable": "head",
            "epochs": "20",
            "batch-size": "64",
            "hidden-units": "256",
            "dropout": "0.25",
            "optimizer": "adam",
            "lr": "0.001",
            "weight-decay": "0",
        },
    ),
    "resnet50": Preset(
        "The head and the last stage of ResNet-50 in small batches, for small memories; batch-size=16 to 64.",
        {
            "model": "resnet50",
            "trainable": "last_stage",
            "epochs": "10",
            "batch-size": "32",
            "optimizer": "adamw",
            "lr": "0.0003",
            "weight-decay": "0.01",
        },
    ),
    "resnet50-sgd": Preset(
        "All of ResNet-50 by SGD with momentum, a rate that falls in steps, and early stopping.",
        {
            "model": "resnet50",
            "trainable": "all",
            "head-epochs": "0",
            "epochs": "30",
            "batch-size": "32",
            "optimizer": "sgd",
            "momentum": "0.9",
            "lr": "0.01",
            "schedule": "step",
            "step-epochs": "10",
            "gamma": "0.1",
            "weight-decay": "0.0001",
            "patience": "5",
            "min-epochs": "10",
        },
    ),
}
"""The recipes, in the order in which they are documented."""


def markdown_table() -> str:
    """The README's table, one row per recipe."""
    rows = ["| preset | what | values |", "|---|---|---|"]
    for name, preset in PRESETS.items():
        values = " ".join(f"{key}={text}" for key, text in preset.values.items())
        rows.append(f"| `{name}` | {preset.help} | `{values}` |")
    return "\n".join(rows) + "\n"
