"""Which values a rule's parameters may have: a rule with others would judge with confidence and mean nothing.

Pure: parameters in, sentences on what is wrong out. Knows rules by name alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple


class _Range(NamedTuple):
    """Numbers from `least` to `most`, both included."""

    least: float
    most: float = math.inf

    def __str__(self) -> str:
        return f"{self.least:g} or more" if self.most == math.inf else f"from {self.least:g} to {self.most:g}"


_ANY = _Range(-math.inf)
_NOT_NEGATIVE = _Range(0)
_PERCENT, _SHARE = _Range(0, 100), _Range(0, 1)
_REGEXES = frozenset({"tensor_regex", "activation_inputs_regex"})

_RANGES: Mapping[str, _Range] = {
    # Counts of what must be there for anything to be said.
    "num_steps": _Range(1),
    "window": _Range(1),
    "samples": _Range(1),
    "steps": _Range(1),
    "patience_train": _Range(1),
    "patience_validation": _Range(1),
    "category_no": _Range(2),
    "UnchangedTensor:num_steps": _Range(2),
    "PoorWeightInitialization:patience": _Range(1),
    # Places on an activation's axis.
    "threshold_tanh_min": _ANY,
    "threshold_tanh_max": _ANY,
    "threshold_sigmoid_min": _ANY,
    "threshold_sigmoid_max": _ANY,
    # Shares.
    "diff_percent": _PERCENT,
    "threshold_misprediction": _SHARE,
    "min_diag": _SHARE,
    "max_off_diag": _SHARE,
    "threshold_p95": _PERCENT,
    "threshold_p5": _PERCENT,
    "gpu_threshold": _PERCENT,
    "cpu_threshold": _PERCENT,
    "io_threshold": _PERCENT,
    "cpu_threshold_p95": _PERCENT,
    "gpu_threshold_p95": _PERCENT,
    "gpu_memory_threshold_p95": _PERCENT,
    "threshold_inactivity": _PERCENT,
    "threshold_layer": _PERCENT,
    "CPUBottleneck:threshold": _PERCENT,
    "IOBottleneck:threshold": _PERCENT,
    "AllZero:threshold": _PERCENT,
}
"""Parameter, or rule and parameter -> what is allowed; other numbers are 0 or more."""

_ORDERED = (
    ("threshold_tanh_min", "threshold_tanh_max"),
    ("threshold_sigmoid_min", "threshold_sigmoid_max"),
    ("min_threshold", "max_threshold"),
)
"""The first may not be above the second."""

_ONE_OF: Mapping[str, tuple[str, ...]] = {
    "AllZero": ("collection_names", "tensor_regex"),
    "UnchangedTensor": ("collection_names", "tensor_regex"),
    "TensorVariance": ("collection_names", "tensor_regex"),
}
"""Rules that must be told what to look at."""

_LIMITS: Mapping[str, tuple[str, ...]] = {"TensorVariance": ("max_threshold", "min_threshold")}
"""Rules that must be told what is too much."""


def problems(rule: str, parameters: Mapping[str, object]) -> Iterator[str]:
    """What is wrong with a rule's parameters: a sentence each, with rule, parameter, value and what is allowed.

    Args:
        rule: its name.
        parameters: all of them, with their values.
    """
    for name, value in parameters.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            allowed = _RANGES.get(f"{rule}:{name}") or _RANGES.get(name, _NOT_NEGATIVE)
            if not math.isfinite(value):
                yield f"{rule}:{name}={value} is not a finite number"
            elif not allowed.least <= value <= allowed.most:
                yield f"{rule}:{name}={value:g} is not allowed; give {allowed}"
        elif name in _REGEXES and isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                yield f"{rule}:{name}={value!r} is no regular expression: {error}"
    for low, high in _ORDERED:
        least, most = parameters.get(low), parameters.get(high)
        if isinstance(least, int | float) and isinstance(most, int | float) and least > most:
            yield f"{rule}:{low}={least:g} is above {high}={most:g}; give one that is not"
    if rule in _ONE_OF and not any(parameters[name] for name in _ONE_OF[rule]):
        yield f"{rule} must be told what to look at: {rule}:collection_names=weights or {rule}:tensor_regex=REGEX"
    if rule in _LIMITS and all(parameters[name] is None for name in _LIMITS[rule]):
        either = " or ".join(f"{rule}:{name}=NUMBER" for name in _LIMITS[rule])
        yield f"{rule} must be told a limit: {either}"
