"""What a hook saves when: our collections for the rules, merged with those of the platform's configuration.

A plan is an unregistered smdebug hook: its collections, save steps and folder are what is asked of it. Everything that
touches smdebug's own, untyped, interface for saving stands here.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from torch import nn

from dogbreed.deferred import is_compiled
from dogbreed.insight.rules.common import Need, Rule
from dogbreed.insight.rules.registry import needs_of
from dogbreed.insight.rules.tensors import SaturatedActivation, WeightUpdateRatio

TRAIN_INTERVAL = 10
"""Train losses are saved every so many steps; evaluation losses at every step."""
TENSOR_INTERVAL = 100
"""Gradients and weights are saved every so many train steps."""
FIRST_STEPS = 10
ACTIVATION_INTERVAL = 500
"""Activations are saved at the first train steps, and then every so many."""
ACTIVATIONS = ("relu_input", "relu_output", "tanh_input", "sigmoid_input")
KEPT = ("gradients", "weights", *ACTIVATIONS)
"""Collections of which statistics are kept for the rules."""
OWN = frozenset({"insight", "labels", "predictions"})
"""Collections that are written whenever there is something to write."""
_TYPE_NAMES = {"relu": "ReLU", "tanh": "Tanh", "sigmoid": "Sigmoid"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is saved beside the losses; see `wanted`.

    Attributes:
        needs: of the rules.
        weights_every: train steps between two saves of the weights.
        tanh: smallest and largest input of an active Tanh.
        sigmoid: the same of a Sigmoid.
    """

    needs: frozenset[Need] = frozenset({Need.LOSSES})
    weights_every: int = TENSOR_INTERVAL
    tanh: tuple[float, float] = (-math.inf, math.inf)
    sigmoid: tuple[float, float] = (-math.inf, math.inf)


def wanted(rules: Sequence[Rule]) -> Wanted:
    """Exactly what these rules need."""
    every = [rule.num_steps for rule in rules if isinstance(rule, WeightUpdateRatio) and rule.num_steps]
    bounds = [rule for rule in rules if isinstance(rule, SaturatedActivation)]
    found = Wanted(needs=needs_of(rules), weights_every=min(every, default=TENSOR_INTERVAL))
    for rule in bounds:
        found = Wanted(
            found.needs,
            found.weights_every,
            (rule.threshold_tanh_min, rule.threshold_tanh_max),
            (rule.threshold_sigmoid_min, rule.threshold_sigmoid_max),
        )
    return found


def make_plan(
    model: nn.Module, folder: Path, config: Path | None, wanted: Wanted
) -> tuple[Any, dict[str, str], bool]:  # smdebug has no types
    """Decides what is saved when.

    Returns:
        An smdebug hook with the platform's collections and ours; why some of ours cannot be saved; and whether the
        files hold ever fewer of a job's evaluation passes, see `is_filed`: not where the platform asks for losses.
    """
    import smdebug.pytorch as smd

    given = {} if config is None else json.loads(config.read_text(encoding="utf-8"))
    modules = {} if is_compiled(model) else dict(model.named_modules())
    ours, missing = _collections(wanted, modules)
    if is_compiled(model):
        missing |= dict.fromkeys(ACTIVATIONS, "the network is compiled, and a compiled module shows no activations.")
    theirs = given.get("CollectionConfigurations") or []
    merged = {one["CollectionName"]: one for one in (*ours, *theirs)}
    document = {
        **given,
        "LocalPath": str(_fresh(Path(given["LocalPath"]) if given.get("LocalPath") else folder)),
        "CollectionConfigurations": list(merged.values()),
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        plan = smd.Hook.create_from_json_file(file.name)
    plan._prepare_collections()
    return plan, missing, all(one["CollectionName"] != "losses" for one in theirs)


def is_filed(evaluation_pass: int) -> bool:
    """Whether an evaluation pass of a job, counted from 0, goes to smdebug's files.

    Of the first twenty each does, then every second one, from the fortieth on every fourth, and so on: smdebug wants a
    file per saved step, and each of them is sent to S3 by itself. To make one takes 40 microseconds and more, which is
    a tenth of the step that it tells of where a head learns. What the rules of the image look at is kept in memory, of
    all passes.
    """
    return evaluation_pass % (1 << max(0, (evaluation_pass // 10).bit_length() - 1)) == 0


def _collections(wanted: Wanted, modules: Mapping[str, nn.Module]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Our collection configurations, and collection -> why it cannot be saved."""
    first = ",".join(str(step) for step in range(FIRST_STEPS))
    never = {f"{mode}.{key}": "0" for mode in ("eval", "predict", "global") for key in ("end_step",)}
    reductions = {"reductions": "min,max,mean,variance,abs_mean"}
    needs = wanted.needs

    def at(interval: int, *, first_steps: bool) -> dict[str, str]:
        return {"train.save_interval": str(interval), **({"train.save_steps": first} if first_steps else {})}

    early = Need.FIRST_STEPS in needs
    every: dict[str, dict[str, str]] = {
        "losses": {
            **at(TRAIN_INTERVAL, first_steps=early),
            "eval.save_interval": "1",
            "predict.save_interval": "1",
        }
    }
    if Need.GRADIENTS in needs:
        every["gradients"] = at(TENSOR_INTERVAL, first_steps=early) | never | reductions
    if Need.WEIGHTS in needs:
        every["weights"] = at(wanted.weights_every, first_steps=False) | never | reductions
    missing: dict[str, str] = {}
    for collection, need, side in (
        ("relu_input", Need.RELU_INPUTS, "input"),
        ("relu_output", Need.RELU_OUTPUTS, "output"),
        ("tanh_input", Need.BOUNDED_INPUTS, "input"),
        ("sigmoid_input", Need.BOUNDED_INPUTS, "input"),
    ):
        if need not in needs:
            continue
        kind = collection.partition("_")[0]
        names = [name for name, module in modules.items() if kind_of(module) == kind]
        if names:
            pattern = "|".join(_escaped(name) for name in names)
            regex = {"include_regex": f"^({pattern})_{side}_[0-9]+$"}
            every[collection] = at(ACTIVATION_INTERVAL, first_steps=True) | never | reductions | regex
        else:
            missing[collection] = (
                f"the part of the network that is trained has no {_TYPE_NAMES[kind]} module; with cache=true the "
                f"frozen part runs once and is not watched."
            )
    for name, pattern in (("insight", "^(insight|units)/"), ("labels", "^labels$"), ("predictions", "^predictions$")):
        every[name] = {"include_regex": pattern, "save_interval": "1"}
    return [{"CollectionName": name, "CollectionParameters": one} for name, one in every.items()], missing


def kind_of(module: nn.Module) -> str:
    """``relu``, ``tanh``, ``sigmoid``, or empty."""
    if isinstance(module, nn.ReLU | nn.ReLU6):
        return "relu"
    return "tanh" if isinstance(module, nn.Tanh) else "sigmoid" if isinstance(module, nn.Sigmoid) else ""


def loss_name(criterion: nn.Module) -> str:
    """The criterion's class; smdebug's `losses` are what has "loss" or "Loss" at its end."""
    name = type_name(criterion)
    return name if name.lower().endswith("loss") else f"{name}Loss"


def type_name(module: nn.Module) -> str:
    """A module's class, by which smdebug names a root module."""
    return type(module).__name__


def _escaped(name: str) -> str:
    return name.replace(".", "[.]")


def mode_keys() -> dict[str, Any]:
    """Name -> smdebug's key of each mode."""
    import smdebug.pytorch as smd

    return {mode.name: mode for mode in smd.modes}


def quieten_smdebug() -> None:
    """Lets smdebug's warnings through our own formatter and drops its chatter; it installs a handler on import."""
    debugger = logging.getLogger("smdebug")
    if not any(isinstance(one, _WarningsOnly) for one in debugger.filters):
        debugger.addFilter(_WarningsOnly())


def _fresh(folder: Path) -> Path:
    candidates = (folder if n == 1 else folder.with_name(f"{folder.name}-{n}") for n in count(1))
    return next(candidate for candidate in candidates if not candidate.exists())


class _WarningsOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING
