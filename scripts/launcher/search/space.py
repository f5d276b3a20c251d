"""What a search explores: ranges and choices per hyperparameter, from the declarations or narrower.

One space drives SageMaker's tuner and the local search. Knows the declarations of `dogbreed.hyperparameters`; does not
know who searches. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from dogbreed.errors import HyperparameterError
from dogbreed.hyperparameters import Declaration, Hyperparameters, SearchRange, Value, declarations, declared
from scripts.launcher.errors import SettingError

Goal = Literal["maximise", "minimise"]

# Searched only where it is named: the weights of every network must be at hand.
_ON_REQUEST = frozenset({"model"})
# Says nothing where only the head learns.
_BELOW_THE_HEAD = frozenset({"layer-decay"})


@dataclass(frozen=True, slots=True)
class Space:
    """What is searched, and what stays.

    Attributes:
        ranges: hyperparameter, with hyphens, -> what is explored.
        fixed: the same for every trial, as text.
    """

    ranges: Mapping[str, SearchRange]
    fixed: Mapping[str, str]

    @property
    def combinations(self) -> int | None:
        """How many trials there can be, or None where something is a range."""
        if any(not one.choices for one in self.ranges.values()):
            return None
        return math.prod(len(one.choices) for one in self.ranges.values())

    def __str__(self) -> str:
        return "; ".join(f"{name}: {one}" for name, one in self.ranges.items())


# The spaces of three earlier projects, each with the recipe that it was searched on.
PRESETS: Mapping[str, Space] = {
    "densenet121": Space(
        {
            "lr": SearchRange(low=0.001, high=0.1, scale="log"),
            "batch-size": SearchRange(choices=(128, 256)),
            "epochs": SearchRange(low=2, high=5),
        },
        {"preset": "densenet121"},
    ),
    "resnet18": Space(
        {
            "model": SearchRange(choices=("resnet18", "resnet34")),
            "batch-size": SearchRange(choices=(128, 256, 512)),
        },
        {"preset": "resnet18"},
    ),
    "resnet152": Space(
        {
            "lr": SearchRange(low=0.0001, high=0.1, scale="log"),
            "batch-size": SearchRange(choices=(32, 64, 128, 256)),
            "hidden-units": SearchRange(choices=(128, 256, 512)),
            "dropout": SearchRange(low=0.0, high=0.5),
        },
        {"preset": "resnet152"},
    ),
}
"""Name -> space; the name is that of the recipe as well."""


def make(
    *,
    fixed: Mapping[str, str],
    preset: str | None = None,
    names: Sequence[str] = (),
    ranges: Sequence[tuple[str, str]] = (),
    choices: Sequence[tuple[str, str]] = (),
) -> Space:
    """Puts a space together.

    What is named is searched; where nothing is, every declared range but that of the model, which takes weights of
    every network, and of what is fixed.

    Args:
        fixed: hyperparameters of every trial, checked already, names with hyphens.
        preset: one of `PRESETS`, which the rest changes and adds to.
        names: to be searched in their declared ranges.
        ranges: name and `LOW:HIGH`, `LOW:HIGH:log` or `LOW:HIGH:linear`.
        choices: name and `VALUE,VALUE,...`.

    Raises:
        SettingError: a name is unknown, is fixed and searched, or has no range; a value is not allowed.
    """
    base = PRESETS[preset] if preset else Space({}, {})
    found = dict(base.ranges)
    given: list[str] = []
    for name in names:
        declaration = _declared(name)
        found[declaration.name] = _searched(declaration)
        given.append(declaration.name)
    for name, text in ranges:
        declaration = _declared(name)
        found[declaration.name] = _range(declaration, text)
        given.append(declaration.name)
    for name, text in choices:
        declaration = _declared(name)
        found[declaration.name] = _choices(declaration, text)
        given.append(declaration.name)
    if twice := [name for name in given if given.count(name) > 1]:
        raise SettingError(f"{twice[0]} is to be searched twice; name it once, by --search, --range or --choice")
    everywhere = {**base.fixed, **fixed}
    if both := [name for name in given if name in fixed]:
        raise SettingError(f"{both[0]} is fixed by --hp and searched as well; leave one of them out")
    # A preset's range gives way to a value.
    found = {name: one for name, one in found.items() if name not in fixed}
    space = Space(found or _default(everywhere), everywhere)
    _check(space)
    return space


def text(value: Value) -> str:
    """A value as a job is given it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def is_whole(name: str) -> bool:
    """Whether the hyperparameter is a whole number."""
    return declared(name).type is int


def most_epochs(space: Space) -> int:
    """Epochs of the longest trial."""
    searched = space.ranges.get("epochs")
    if searched is None:
        return Hyperparameters.parse(space.fixed).epochs
    return int(max((float(one) for one in searched.choices), default=searched.high or 0))


def mean_epochs(space: Space) -> float:
    """Epochs of a trial on average, where trials are spread evenly over the space."""
    searched = space.ranges.get("epochs")
    if searched is None:
        return float(most_epochs(space))
    ends = searched.choices or (searched.low or 0.0, searched.high or 0.0)
    return sum(float(one) for one in ends) / len(ends)


def grid(space: Space) -> Iterator[dict[str, str]]:
    """Every combination of a space of choices."""
    names = list(space.ranges)
    for values in product(*(space.ranges[name].choices for name in names)):
        yield {name: text(value) for name, value in zip(names, values, strict=True)}


def _default(fixed: Mapping[str, str]) -> dict[str, SearchRange]:
    head_alone = Hyperparameters.parse(fixed).trainable == "head"
    left_out = _ON_REQUEST | (_BELOW_THE_HEAD if head_alone else frozenset())
    found = {
        one.name: one.search
        for one in declarations()
        if one.search and one.name not in left_out and one.name not in fixed
    }
    if not found:
        raise SettingError("--hp fixes everything that has a range; leave out what is to be searched")
    return found


def _declared(name: str) -> Declaration:
    try:
        return declared(name)
    except HyperparameterError as error:
        raise SettingError(str(error)) from error


def _searched(declaration: Declaration) -> SearchRange:
    if declaration.search is None:
        has = ", ".join(one.name for one in declarations() if one.search)
        raise SettingError(
            f"--search {declaration.name}: it has no range of its own; give one by --range or --choice, or search {has}"
        )
    return declaration.search


def _range(declaration: Declaration, given: str) -> SearchRange:
    name = declaration.name
    parts = given.split(":")
    scale = parts[2] if len(parts) == 3 else "linear"
    if len(parts) not in (2, 3) or scale not in ("log", "linear"):
        raise SettingError(f"--range {name}={given}: give LOW:HIGH or LOW:HIGH:log, as lr=0.001:0.1:log")
    if declaration.type not in (int, float):
        raise SettingError(f"--range {name}: it is {declaration.allowed}; give --choice {name}=VALUE,VALUE")
    low, high = (_number(declaration, part, "--range", given) for part in parts[:2])
    if low >= high:
        raise SettingError(f"--range {name}={given}: the first number must be the smaller one")
    if scale == "log" and low <= 0:
        raise SettingError(f"--range {name}={given}: a log scale begins above 0")
    return SearchRange(low=low, high=high, scale="log" if scale == "log" else "linear")


def _number(declaration: Declaration, part: str, option: str, given: str) -> float:
    value = _value(declaration, part, option, given)
    return float(value)


def _choices(declaration: Declaration, given: str) -> SearchRange:
    name = declaration.name
    values = tuple(_value(declaration, part, "--choice", given) for part in given.split(","))
    if len(set(values)) < len(values):
        raise SettingError(f"--choice {name}={given}: a value stands twice")
    if len(values) < 2:
        raise SettingError(f"--choice {name}={given}: that is one value; fix it by --hp {name}={given}")
    return SearchRange(choices=values)


def _value(declaration: Declaration, part: str, option: str, given: str) -> Value:
    try:
        return declaration.parse(part)
    except ValueError as error:
        raise SettingError(
            f"{option} {declaration.name}={given}: {part!r} is not allowed; {declaration.name} is {declaration.allowed}"
        ) from error


def _check(space: Space) -> None:
    """Holds the ends of every range, one at a time, against the rules for values that go together."""
    for name, one in space.ranges.items():
        ends = one.choices or tuple(end for end in (one.low, one.high) if end is not None)
        for end in ends:
            try:
                Hyperparameters.parse({**space.fixed, name: text(end)})
            except HyperparameterError as error:
                raise SettingError(f"with {name}={text(end)}, every such trial would fail: {error}") from error
