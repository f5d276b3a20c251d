"""AWS's own Debugger for a training job, as plain values: its hook, its rules, its profiler and the rules on that.

For accounts that still have the service: AWS closed it to new customers on 2026-07-30. Knows no argument parser and
sends nothing. Rules are written as the image's own are, `Overfit:patience=2;ratio_threshold=0.2`, and have AWS's names
and parameters; every parameter reaches AWS's rule as text.

Tensors are saved more often than the SDK asks for: with its one step in 500, and no validation losses at all, most
rules end in `Error` on an ordinary fine-tuning job.

Sources: image_uri_config/debugger.json of sagemaker-core 2.27 for the registries; smdebug-rulesconfig 1.0.1 for names
and collections; awsdocs/amazon-sagemaker-developer-guide @ 29f3276, debugger-built-in-rules.md, for the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from scripts.launcher.errors import SettingError

REGISTRIES: Mapping[str, str] = {
    "af-south-1": "314341159256",
    "ap-east-1": "199566480951",
    "ap-northeast-1": "430734990657",
    "ap-northeast-2": "578805364391",
    "ap-northeast-3": "479947661362",
    "ap-south-1": "904829902805",
    "ap-southeast-1": "972752614525",
    "ap-southeast-2": "184798709955",
    "ca-central-1": "519511493484",
    "cn-north-1": "618459771430",
    "cn-northwest-1": "658757709296",
    "eu-central-1": "482524230118",
    "eu-north-1": "314864569078",
    "eu-south-1": "563282790590",
    "eu-west-1": "929884845733",
    "eu-west-2": "250201462417",
    "eu-west-3": "447278800020",
    "me-south-1": "986000313247",
    "sa-east-1": "818342061345",
    "us-east-1": "503895931360",
    "us-east-2": "915447279597",
    "us-gov-west-1": "515509971035",
    "us-west-1": "685455198987",
    "us-west-2": "895741380848",
}
"""Region -> account that holds the image of AWS's rules."""

DEFAULT_RULES = ("LossNotDecreasing", "Overfit", "ProfilerReport")
MOST_RULES = 20
"""Of each kind (CreateTrainingJob)."""

_Collections = Mapping[str, Mapping[str, str]]

_FIRST_STEPS = ",".join(str(step) for step in range(10))
_LOSSES: _Collections = {"losses": {"train.save_interval": "10", "eval.save_interval": "1"}}
_GRADIENTS: _Collections = {"gradients": {"train.save_interval": "100"}}
_WEIGHTS: _Collections = {"weights": {"train.save_interval": "100"}}
_BIASES: _Collections = {"biases": {"train.save_interval": "100"}}
_NAMED: _Collections = {**_LOSSES, **_GRADIENTS, **_WEIGHTS, **_BIASES}
_EVERY_SELECTION = {"train.save_interval": "100"}


@dataclass(frozen=True, slots=True)
class _Managed:
    """One of AWS's rules.

    Attributes:
        parameters: that it takes.
        collections: that it looks at; name -> when they are saved.
        profiler: whether it looks at the machine instead.
        selects: whether it must be told what to look at.
    """

    parameters: tuple[str, ...] = ()
    collections: _Collections = field(default_factory=dict)
    profiler: bool = False
    selects: bool = False


_SELECTION = ("collection_names", "tensor_regex")
_RULES: Mapping[str, _Managed] = {
    "LossNotDecreasing": _Managed(
        (*_SELECTION, "use_losses_collection", "num_steps", "diff_percent", "increase_threshold_percent", "mode"),
        _LOSSES,
    ),
    "Overfit": _Managed(("tensor_regex", "start_step", "patience", "ratio_threshold"), _LOSSES),
    "Overtraining": _Managed(("patience_train", "patience_validation", "delta"), _LOSSES),
    "ExplodingTensor": _Managed((*_SELECTION, "only_nan"), _LOSSES),
    "VanishingGradient": _Managed(("threshold",), _GRADIENTS),
    "PoorWeightInitialization": _Managed(
        ("activation_inputs_regex", "threshold", "distribution_range", "patience", "steps"),
        {
            name: {"train.save_steps": _FIRST_STEPS, **more}
            for name, more in (
                ("relu_input", {"include_regex": ".*relu_input", "train.save_interval": "500"}),
                *_GRADIENTS.items(),
                *_LOSSES.items(),
            )
        },
    ),
    "DeadRelu": _Managed(
        ("tensor_regex", "threshold_inactivity", "threshold_layer"),
        {"relu_output": {"include_regex": ".*relu_output", "train.save_interval": "100"}},
    ),
    "SaturatedActivation": _Managed(
        (
            *_SELECTION,
            *("threshold_tanh_min", "threshold_tanh_max", "threshold_sigmoid_min", "threshold_sigmoid_max"),
            *("threshold_inactivity", "threshold_layer"),
        ),
        {"bounded_input": {"include_regex": ".*tanh_input|.*sigmoid_input", "train.save_interval": "100"}},
    ),
    "WeightUpdateRatio": _Managed(("num_steps", "large_threshold", "small_threshold", "epsilon"), _WEIGHTS),
    "AllZero": _Managed((*_SELECTION, "threshold"), selects=True),
    "UnchangedTensor": _Managed((*_SELECTION, "num_steps", "rtol", "atol", "equal_nan"), selects=True),
    "TensorVariance": _Managed((*_SELECTION, "max_threshold", "min_threshold"), selects=True),
    # The image saves labels and predictions, as class indices, in every job.
    "ClassImbalance": _Managed(
        (
            *("threshold_imbalance", "threshold_misprediction", "samples", "argmax"),
            *("labels_regex", "predictions_regex"),
        )
    ),
    "Confusion": _Managed(
        (
            *("category_no", "labels", "predictions", "labels_collection", "predictions_collection"),
            *("min_diag", "max_off_diag"),
        )
    ),
    "StalledTrainingRule": _Managed(("threshold", "stop_training_on_fire", "training_job_name_prefix"), _LOSSES),
    **{
        name: _Managed((*parameters, "scan_interval_us"), profiler=True)
        for name, parameters in {
            "BatchSize": (
                "cpu_threshold_p95",
                "gpu_threshold_p95",
                "gpu_memory_threshold_p95",
                "patience",
                "window",
            ),
            "CPUBottleneck": ("threshold", "gpu_threshold", "cpu_threshold", "patience"),
            "Dataloader": ("min_threshold", "max_threshold"),
            "GPUMemoryIncrease": ("increase", "patience", "window"),
            "IOBottleneck": ("threshold", "gpu_threshold", "io_threshold", "patience"),
            "LoadBalancing": ("threshold", "patience"),
            "LowGPUUtilization": ("threshold_p95", "threshold_p5", "window", "patience"),
            "MaxInitializationTime": ("threshold",),
            "OverallSystemUsage": (),
            "StepOutlier": ("stddev", "mode", "n_outliers"),
        }.items()
    },
}
_ALIASES = {"StalledTraining": "StalledTrainingRule"}


def _report_parameters() -> tuple[str, ...]:
    """Those of every rule that a ProfilerReport runs, with the rule's name before them (smdebug-rulesconfig)."""
    rules = {name: rule for name, rule in _RULES.items() if rule.profiler}
    return ("opt_out_telemetry", *(f"{name}_{one}" for name, rule in rules.items() for one in rule.parameters))


RULES: Mapping[str, _Managed] = {**_RULES, "ProfilerReport": _Managed(_report_parameters(), profiler=True)}
"""AWS's rules that concern image classifiers, by name."""


def request_parts(given: Sequence[str], *, region: str, outputs: str) -> dict[str, Any]:
    """What a CreateTrainingJob carries for the managed Debugger.

    Args:
        given: rules as the user wrote them; none is `DEFAULT_RULES`.
        region: of the job.
        outputs: S3 URI below which AWS makes a folder for the job.

    Returns:
        DebugHookConfig and DebugRuleConfigurations, ProfilerConfig and ProfilerRuleConfigurations, as far as the rules
        ask for them.

    Raises:
        SettingError: a rule or parameter is unknown, or the region has no registry of rules.
    """
    image = _image(region)
    rules = dict(_read(text) for text in given or DEFAULT_RULES)
    debug, profiler = ([name for name in rules if RULES[name].profiler is kind] for kind in (False, True))
    if len(rules) < len(given):
        raise SettingError("--managed-debugger: a rule is given twice; give it once")
    if max(len(debug), len(profiler)) > MOST_RULES:
        raise SettingError(f"--managed-debugger: more than {MOST_RULES} rules of a kind; SageMaker takes no more")

    def configurations(names: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {
                "RuleConfigurationName": name,
                "RuleEvaluatorImage": image,
                "RuleParameters": {"rule_to_invoke": name, **rules[name]},
            }
            for name in names
        ]

    parts: dict[str, Any] = {}
    if debug:
        parts["DebugHookConfig"] = {
            "S3OutputPath": outputs,
            "CollectionConfigurations": [
                {"CollectionName": name, "CollectionParameters": saved}
                for name, saved in _collections({name: rules[name] for name in debug}).items()
            ],
        }
        parts["DebugRuleConfigurations"] = configurations(debug)
    if profiler:
        parts["ProfilerConfig"] = {"S3OutputPath": outputs, "ProfilingIntervalInMilliseconds": 500}
        parts["ProfilerRuleConfigurations"] = configurations(profiler)
    return parts


def _image(region: str) -> str:
    account = REGISTRIES.get(region)
    if account is None:
        raise SettingError(
            f"--managed-debugger: the registry of AWS's rules in {region} is not known here; known are "
            + ", ".join(sorted(REGISTRIES))
        )
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"{account}.dkr.ecr.{region}.{domain}/sagemaker-debugger-rules:latest"


def _read(text: str) -> tuple[str, dict[str, str]]:
    """`Name:parameter=value;parameter=value` -> the name, and the parameters as given."""
    name, _, given = text.partition(":")
    name = _ALIASES.get(name.strip(), name.strip())
    if name not in RULES:
        raise SettingError(f"--managed-debugger: rule {name!r} is unknown; {_hint(name, RULES)}")
    rule = RULES[name]
    values: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in given.split(";"))):
        parameter, equals, value = (piece.strip() for piece in part.partition("="))
        if parameter not in rule.parameters:
            raise SettingError(
                f"--managed-debugger: {name} has no parameter {parameter!r}; {_hint(parameter, rule.parameters)}"
            )
        if not equals or not value:
            raise SettingError(f"--managed-debugger: {name}:{parameter} has no value; write {parameter}=VALUE")
        values[parameter] = value
    if rule.selects and not set(_SELECTION) & set(values):
        raise SettingError(
            f"--managed-debugger: {name} must be told what to look at: {name}:collection_names=weights or "
            f"{name}:tensor_regex=REGEX"
        )
    return name, values


def _collections(rules: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Every collection that the rules look at, saved as often as any of them needs."""
    merged: dict[str, dict[str, str]] = {}
    for name, parameters in rules.items():
        for collection, saved in (*RULES[name].collections.items(), *_selected(name, parameters).items()):
            merged.setdefault(collection, {}).update(saved)
    return merged or {name: dict(saved) for name, saved in _LOSSES.items()}


def _selected(rule: str, parameters: Mapping[str, str]) -> _Collections:
    """What a rule was told to look at, which nothing else may be saving."""
    found = {
        name: _NAMED.get(name, _EVERY_SELECTION) for name in parameters.get("collection_names", "").split() if name
    }
    if "tensor_regex" in parameters:
        found[f"{rule}_selection"] = {"include_regex": parameters["tensor_regex"], **_EVERY_SELECTION}
    return found


def _hint(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return (f"did you mean {close[0]}? " if close else "") + f"known are {', '.join(known)}"
