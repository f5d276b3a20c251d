"""Judges a job while it runs: the rules look at what was gathered so far, in a thread that no step waits for.

Each change of a rule's status is told once. A rule that is named to stop the job sets a flag, which the loop asks
before every step as it asks for the platform's stop signal. Knows neither the hook, the sampler nor the loop: it is
given a function that gathers the evidence.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from dogbreed.insight.evidence import Evidence
from dogbreed.insight.rules.common import Need, Rule
from dogbreed.insight.rules.losses import JUDGED
from dogbreed.insight.rules.registry import evaluate
from dogbreed.insight.verdicts import Status, Verdict

logger = logging.getLogger(__name__)

DEFAULT_INTERVAL_S = 10.0
_REST = 100
"""The thread rests this many times as long as it has worked: it takes 1 % of a core at most."""


class Monitor:
    """Evaluates rules again and again.

    Args:
        rules: that are on.
        gather: everything that is known now; called from the monitor's thread, and once from `finish`.
        stop_on: names of rules that end the job when they find an issue.
        on_change: told of each verdict whose status is not the one before; called from the same threads.
        interval_s: between two evaluations, at least.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        gather: Callable[[], Evidence],
        *,
        stop_on: Sequence[str] = (),
        on_change: Callable[[Verdict], None] = lambda verdict: None,
        interval_s: float = DEFAULT_INTERVAL_S,
    ) -> None:
        self._rules = tuple(rules)
        self._gather = gather
        self._stop_on = frozenset(stop_on)
        self._on_change = on_change
        self._interval_s = interval_s
        self._status: dict[str, Status] = {}
        self._fired: dict[str, Verdict] = {}
        self._stopping = ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rules", daemon=True)

    @property
    def stopped_by(self) -> str:
        """The rule that asks for the job to end, or empty. Quick, and safe to ask from any thread."""
        return self._stopping

    def start(self) -> None:
        """Begins to evaluate."""
        self._thread.start()

    def evaluate(self) -> tuple[Verdict, ...]:
        """Evaluates every rule once, tells what changed, and returns the verdicts.

        A rule on tensors, losses or the machine that fired once keeps that verdict: only the newest readings of a long
        job are kept, and what it saw may be gone. Rules on answers are judged by the latest ones alone, because every
        model mixes up classes at first; and what was found in train losses is forgotten when evaluations are judged,
        which say the same with less noise.
        """
        verdicts = tuple(
            self._remembered(rule, verdict)
            for rule, verdict in zip(self._rules, evaluate(self._rules, self._gather()), strict=True)
        )
        for verdict in verdicts:
            if self._status.get(verdict.rule) is not verdict.status:
                # The first look at a job that has saved nothing yet is no change.
                quiet = verdict.rule not in self._status and verdict.status is Status.NOT_ENOUGH_DATA
                self._status[verdict.rule] = verdict.status
                if not quiet:
                    self._on_change(verdict)
            if verdict.status is Status.ISSUES_FOUND and verdict.rule in self._stop_on and not self._stopping:
                self._stopping = verdict.rule
        return verdicts

    def finish(self) -> tuple[Verdict, ...]:
        """Ends the thread and gives the last verdicts."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        return self.evaluate()

    def _remembered(self, rule: Rule, verdict: Verdict) -> Verdict:
        if Need.ANSWERS in rule.needs:
            return verdict
        judged = verdict.details.get(JUDGED)
        if judged == "EVAL" and verdict.rule in self._fired and self._fired[verdict.rule].details[JUDGED] != judged:
            del self._fired[verdict.rule]
        if verdict.status is Status.ISSUES_FOUND:
            self._fired.setdefault(verdict.rule, verdict)
            return verdict
        earlier = self._fired.get(verdict.rule)
        if earlier is None:
            return verdict
        return replace(earlier, evidence=f"{earlier.evidence} Later: {verdict.evidence}")

    def _run(self) -> None:
        rest = self._interval_s
        while not self._end.wait(rest):
            began = time.thread_time()
            try:
                self.evaluate()
            except Exception:  # the job must not end because of what watches it
                logger.exception("the rules are not evaluated any more until the job ends")
                return
            rest = max(self._interval_s, (time.thread_time() - began) * _REST)
