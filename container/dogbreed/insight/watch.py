"""Everything that watches one job, put together: hook, sampler, timeline, profiled steps and rules.

A job makes one `Watch`, attaches it to its network, tells it of passes and steps as it tells any observer, and asks at
the end what was found. Takes plain values and knows nothing of the loop. Nothing here ends a job: what fails is logged,
and the rules that miss it say so. With several processes only the first makes one.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import nn

from dogbreed.insight import profile, tensors
from dogbreed.insight.evidence import Evidence
from dogbreed.insight.monitor import DEFAULT_INTERVAL_S, Monitor
from dogbreed.insight.profile import Profile
from dogbreed.insight.rules.common import Rule
from dogbreed.insight.system import SystemSampler
from dogbreed.insight.tensorboard import TensorBoard
from dogbreed.insight.timeline import OperatorProfile, Timeline
from dogbreed.insight.verdicts import Status, Verdict
from dogbreed.logs import rule_line

logger = logging.getLogger(__name__)

TRACE_FILE = "trace.json"
OPERATORS_FILE = "operators.json"


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found.

    Attributes:
        verdicts: of every rule that was on.
        profile: for the report.
    """

    verdicts: tuple[Verdict, ...]
    profile: Profile


class Watch:
    """Watches one job.

    Args:
        rules: that are on.
        timeline: that the loop marks.
        sampler: of the machine, or None.
        operators: profiles a few train steps, or None.
        stop_on: names of rules that end the job.
        labels: class names, for the words of a verdict.
        interval_s: between two evaluations of the rules.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        timeline: Timeline,
        sampler: SystemSampler | None = None,
        operators: OperatorProfile | None = None,
        stop_on: Sequence[str] = (),
        labels: Sequence[str] = (),
        interval_s: float = DEFAULT_INTERVAL_S,
    ) -> None:
        self.timeline = timeline
        self._rules = tuple(rules)
        self._labels = tuple(labels)
        self._sampler = sampler
        self._operators = operators
        self._hook: tensors.TensorHook | None = None
        self._over = False
        self._monitor = Monitor(rules, self.evidence, stop_on=stop_on, on_change=_tell, interval_s=interval_s)

    @property
    def stopped_by(self) -> str:
        """The rule that asks for the job to end, or empty; for the loop's `stop_requested`."""
        return self._monitor.stopped_by

    def attach(
        self,
        model: nn.Module,
        criterion: nn.Module,
        *,
        folder: Path,
        config: Path | None,
        evaluation_criterion: nn.Module | None = None,
        gradient_scale: Callable[[], float] | None = None,
        board: TensorBoard | None = None,
    ) -> None:
        """Puts the hook on what is trained, see `tensors.attach`, and begins to sample and to judge."""
        self._hook = tensors.attach(
            model,
            criterion,
            folder=folder,
            config=config,
            wanted=tensors.wanted(self._rules),
            evaluation_criterion=evaluation_criterion,
            gradient_scale=gradient_scale,
            board=board,
        )
        if self._sampler is not None:
            self._sampler.start()
        self._monitor.start()

    def go_on(self, steps: int) -> None:
        """So many train steps were done by an earlier start of the job; told before the first pass."""
        if self._hook is not None:
            self._hook.go_on(steps)
        self.timeline.go_on(steps)

    def start_pass(self, phase: str) -> None:
        """A pass begins: ``train``, ``validation``, ``calibration``, ``test`` or ``features``."""
        if self._hook is not None and phase != "features":
            # To the hook a calibration is what a test is: answers that are no epoch's.
            self._hook.set_mode("test" if phase == "calibration" else cast(tensors.Mode, phase))
        self.timeline.start_pass(phase)

    def step(self, phase: str) -> None:
        """A batch is done."""
        self.timeline.step()
        if phase != "train":
            return
        if self._hook is not None:
            self._hook.step()
        if self._operators is not None:
            self._operators.step()

    def end_pass(self) -> None:
        """The pass is over."""
        if self._operators is not None:
            self._operators.stop()
        self.timeline.end_pass()
        if self._hook is not None:
            self._hook.end_pass()

    def evidence(self) -> Evidence:
        """Everything that is known now; may be called from any thread."""
        missing = {"times": "no step was timed."}
        if self._sampler is None:
            missing["system"] = "the machine was not sampled."
        system = None if self._sampler is None else self._sampler.samples()
        if self._hook is None:
            return Evidence(system=system, times=self.timeline.times(), missing=missing, ongoing=not self._over)
        losses, kept, answers, why = self._hook.evidence()
        return Evidence(
            losses=losses,
            tensors=kept,
            answers=answers,
            labels=self._labels,
            system=system,
            times=self.timeline.times(),
            missing={**missing, **why},
            ongoing=not self._over,
        )

    def finish(self, folder: Path) -> Findings:
        """Ends the watching: writes what is buffered, and the traces into the report's folder."""
        self._over = True
        if self._hook is not None:
            self._hook.close()
        if self._sampler is not None:
            self._sampler.stop()
        if self._operators is not None:
            self._operators.stop()
        verdicts = self._monitor.finish()
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        for name, write in (
            (TRACE_FILE, self.timeline.write_trace),
            (OPERATORS_FILE, self._operators.write_trace if self._operators else None),
        ):
            try:
                if write is not None:
                    write(folder / name)
            except (OSError, RuntimeError) as error:
                logger.warning("%s cannot be written: %s", folder / name, error)
        operators = self._operators.operators() if self._operators else ()
        return Findings(verdicts, profile.of(self.evidence(), operators))


def _tell(verdict: Verdict) -> None:
    """One line per change of a rule's status, with a metric that SageMaker can scrape."""
    metric = rule_line(verdict.rule, fired=verdict.status is Status.ISSUES_FOUND)
    logger.info("%s %s. %s", metric, verdict.status.value, verdict.evidence)
