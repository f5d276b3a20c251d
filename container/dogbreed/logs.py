"""What the container prints: one formatter, and the metric lines with the regexes that read them.

SageMaker scrapes metrics from the log, stdout and stderr alike, one regex per metric with the value in brackets
(AWS docs: training-metrics). Format and regexes stand side by side here so that they cannot drift apart.
Nothing is configured on import.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import warnings
from collections.abc import Mapping
from typing import TextIO

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_NUMBER = r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?"
METRIC_NAMES = (
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
)
"""Every metric of an epoch or of the whole job.

Accuracies are shares in [0, 1]; losses are mean cross entropies in nats.
"""

RULE_NAMES = (
    "LossNotDecreasing",
    "Overfit",
    "Overtraining",
    "ExplodingTensor",
    "VanishingGradient",
    "PoorWeightInitialization",
    "DeadRelu",
    "SaturatedActivation",
    "WeightUpdateRatio",
    "AllZero",
    "UnchangedTensor",
    "TensorVariance",
    "ClassImbalance",
    "Confusion",
    "StalledTraining",
    "LowGPUUtilization",
    "CPUBottleneck",
    "IOBottleneck",
    "BatchSize",
    "GPUMemoryIncrease",
    "LoadBalancing",
    "Dataloader",
    "MaxInitializationTime",
    "StepOutlier",
    "OverallSystemUsage",
    "OverallFrameworkMetrics",
)
"""Every rule whose changes of status a job prints, see `insight.rules.registry`."""

_EPOCH_REGEXES: Mapping[str, str] = {name: rf"\b{name}=({_NUMBER})(?:;|$)" for name in METRIC_NAMES}
METRIC_REGEXES: Mapping[str, str] = {
    **_EPOCH_REGEXES,
    **{f"rule_{name}": rf"\brule_{name}=([01])(?:;|$)" for name in RULE_NAMES},
}
"""Metric name -> regex for a job's MetricDefinitions, of which SageMaker takes 40; group 1 is the value."""


def metric_line(metrics: Mapping[str, float], *, epoch: int | None = None) -> str:
    """One line with all the metrics of an epoch, or of the whole job when ``epoch`` is None.

    Example: ``epoch=3; train_loss=0.4121; validation_accuracy=0.8750;``
    """
    unknown = set(metrics) - set(METRIC_NAMES)
    if unknown:
        raise ValueError(f"metrics without a regex: {sorted(unknown)}")
    head = [] if epoch is None else [f"epoch={epoch};"]
    return " ".join(head + [f"{name}={value:.6g};" for name, value in metrics.items()])


def rule_line(rule: str, *, fired: bool) -> str:
    """The metric of a rule, told whenever its status changes: 1 while there is an issue, as in ``rule_Overfit=1;``."""
    if rule not in RULE_NAMES:
        raise ValueError(f"a rule without a regex: {rule}")
    return f"rule_{rule}={int(fired)};"


def read_metrics(line: str) -> dict[str, float]:
    """The metrics of an epoch or a job in one log line, found with the regexes that SageMaker is given."""
    found = {name: re.search(regex, line) for name, regex in _EPOCH_REGEXES.items()}
    return {name: float(match.group(1)) for name, match in found.items() if match}


def configure(level: str = "INFO", stream: TextIO | None = None, *, as_json: bool = False) -> None:
    """Sets up the root logger; called once, at the entry of a job or a server.

    Args:
        level: name of the lowest level that is printed.
        stream: where to; default stdout.
        as_json: one JSON object a line instead of text.
    """
    handler = logging.StreamHandler(sys.stdout if stream is None else stream)
    handler.setFormatter(_JsonFormatter() if as_json else _TextFormatter(_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Pillow warns of odd EXIF, palettes and sizes, once per kind; `preprocessing` decides what is acceptable.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # Pillow logs every chunk of a PNG at DEBUG, which drowns a job that is being debugged.
    logging.getLogger("PIL").setLevel(logging.INFO)


def document(content: Mapping[str, object]) -> Mapping[str, object]:
    """``extra=`` for a record that is printed as this JSON object and nothing else, whatever the format."""
    return {"document": content}


def fields(**values: object) -> Mapping[str, object]:
    """``extra=`` for values that become keys of a JSON line; a text line leaves them to its message."""
    return {"fields": values}


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        content = getattr(record, "document", None)
        return super().format(record) if content is None else json.dumps(content)


class _JsonFormatter(logging.Formatter):
    """Keys ``time`` (UTC), ``level``, ``logger``, ``message``, what `fields` holds, and ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        content = getattr(record, "document", None)
        if content is None:
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            content = {
                "time": f"{moment}.{int(record.msecs):03d}Z",
                "level": record.levelname,
                "logger": record.name,
                "message": record.getMessage(),
                **getattr(record, "fields", {}),
            }
            if record.exc_info:
                content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)
