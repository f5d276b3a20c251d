"""What a check may use: jobs and endpoints of one subject, and what earlier checks saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

from local_test.simulator.checks.check import BlockedError, NotApplicableError
from local_test.simulator.checks.jobs import Ended, Job, Jobs
from local_test.simulator.checks.patience import Patience
from local_test.simulator.checks.profile import Profile
from local_test.simulator.checks.servers import Servers
from local_test.simulator.subjects import Subject

T = TypeVar("T")


@dataclass
class Context:
    """What checks share.

    Args:
        subject: what is checked.
        profile: what it trains on, and what it is asked.
        work: folder for everything; the caller removes it.
        contained: the subject is an image, which sees /opt/ml and not this machine's paths.
        patience: for how long is waited.
    """

    subject: Subject
    profile: Profile
    work: Path
    contained: bool
    patience: Patience = field(default_factory=Patience)
    _seen: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def jobs(self) -> Jobs:
        """Raises: NotApplicableError without training in the profile."""
        if self.profile.training is None:
            raise NotApplicableError("the profile has no [train]")
        return Jobs(self.subject, self.profile.training, self.patience, self.work, self.contained)

    @cached_property
    def servers(self) -> Servers:
        """Raises: NotApplicableError without serving in the profile; BlockedError without a model."""
        serving = self.profile.serving
        if serving is None:
            raise NotApplicableError("the profile has no [serve]")
        model = serving.model
        if model is None:
            if self.profile.training is None:
                raise NotApplicableError("the profile names no model, and has no [train] that would make one")
            model = self.plain_job().root / "model"
        return Servers(self.subject, serving, model, self.patience, self.work, self.contained)

    def plain_job(self) -> Ended:
        """The job without any peculiarity, which succeeded.

        Raises:
            BlockedError: it did not.
        """
        ended = self.jobs.run(Job())
        if ended.exit_code != 0:
            raise BlockedError("a plain job fails: see train.starts")
        return ended

    def once(self, name: str, look: Callable[[], T]) -> T:
        """What ``look`` saw, now or when an earlier check asked for it; its exceptions are kept as well."""
        if name not in self._seen:
            try:
                self._seen[name] = look()
            except NotApplicableError as error:
                self._seen[name] = error
        if isinstance(self._seen[name], NotApplicableError):
            raise self._seen[name]
        return cast(T, self._seen[name])

    def close(self) -> None:
        """Ends what still runs."""
        if "servers" in self.__dict__:
            self.servers.close()
