"""Metrics as CloudWatch gets them: regexes over the lines of a job's log.

Sources: AWS docs, training-metrics, automatic-model-tuning-define-metrics-variables; API reference, MetricDefinition.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from local_test.simulator.channels import RequestError

_MAX_DEFINITIONS = 40
_MAX_NAME = 255
_MAX_REGEX = 500


@dataclass
class Series:
    """The values of one metric, in the order of the log.

    Args:
        values: all of them.
        times: when each was read, in seconds since the epoch.
    """

    values: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


class Scraper:
    """Collects metrics from lines.

    Args:
        definitions: name -> regex, whose first group is the value.

    Raises:
        RequestError: a definition that CreateTrainingJob would refuse.
    """

    def __init__(self, definitions: Mapping[str, str]) -> None:
        if len(definitions) > _MAX_DEFINITIONS:
            raise RequestError(f"{len(definitions)} metric definitions; a job takes {_MAX_DEFINITIONS}")
        self._regexes = {name: _compiled(name, regex) for name, regex in definitions.items()}
        self.series: dict[str, Series] = {}

    def read(self, line: str) -> bool:
        """Takes what the line tells; whether it told anything."""
        found = False
        for name, regex in self._regexes.items():
            for match in regex.finditer(line):
                try:
                    value = float(match[1])
                except (TypeError, ValueError):
                    continue
                if math.isfinite(value):
                    series = self.series.setdefault(name, Series())
                    series.values.append(value)
                    series.times.append(time.time())
                    found = True
        return found

    def final(self) -> Sequence[Mapping[str, object]]:
        """FinalMetricDataList of DescribeTrainingJob: the latest value of each, not the best."""
        return [
            {"MetricName": name, "Value": series.values[-1], "Timestamp": series.times[-1]}
            for name, series in self.series.items()
        ]


def _compiled(name: str, regex: str) -> re.Pattern[str]:
    if not 1 <= len(name) <= _MAX_NAME or not 1 <= len(regex) <= _MAX_REGEX:
        raise RequestError(f"metric {name[:80]!r}: a name has 1 to {_MAX_NAME} characters, a regex 1 to {_MAX_REGEX}")
    try:
        compiled = re.compile(regex)
    except re.error as error:
        raise RequestError(f"metric {name}: {regex!r} is no regular expression: {error}") from error
    if compiled.groups < 1:
        raise RequestError(f"metric {name}: {regex!r} has no group; put the value in brackets")
    return compiled
