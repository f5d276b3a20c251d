"""Starts endpoints for the checks. Checks that only ask share one; those that break something get their own."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from local_test.simulator.checks.check import BlockedError
from local_test.simulator.checks.client import Answer, NoAnswerError, ask
from local_test.simulator.checks.jobs import read_log
from local_test.simulator.checks.patience import Patience
from local_test.simulator.checks.profile import Serving
from local_test.simulator.subjects import Command, Mount, Running, Start, Subject

_POLL_S = 0.03
_SECOND_WINDOW_S = 30.0


class Model(StrEnum):
    """What the endpoint finds in its model folder."""

    GOOD = "good"
    BROKEN = "broken"
    MISSING = "missing"


@dataclass(frozen=True)
class Endpoint:
    """One way to start an endpoint; equal ones may be shared.

    Args:
        model: what is in the model folder.
        environment: variables beside those of the profile.
        multi_model: models are below ``models``, and the model folder is empty.
        port: on which it is told to listen; None leaves it to the subject's default.
        isolated: in a network without a way out.
    """

    model: Model = Model.GOOD
    environment: tuple[tuple[str, str], ...] = ()
    multi_model: bool = False
    port: int | None = None
    isolated: bool = False


@dataclass
class Server:
    """A started endpoint.

    Args:
        running: the subject.
        serving: what it is asked.
        patience: for how long is waited.
        root: its /opt/ml.
        log_file: what it prints.
        began: when it was started, of `time.monotonic`.
        first: what /invocations answered right after the first 200 of /ping, or why there was no answer.
        ready_s: after which /ping was 200; None when it was not.
        models: folder of the models of a multi-model endpoint, as the subject sees it.
    """

    running: Running
    serving: Serving
    patience: Patience
    root: Path
    log_file: Path
    began: float
    models: str = ""
    first: Answer | str | None = None
    ready_s: float | None = None

    @property
    def log(self) -> str:
        """All that it printed so far."""
        return read_log(self.log_file)

    @property
    def last_words(self) -> str:
        """The last line of the log, for evidence."""
        lines = [line.strip() for line in self.log.splitlines() if line.strip()]
        return f"; its last line was {lines[-1][:200]!r}" if lines else "; it printed nothing"

    def ping(self, timeout_s: float | None = None) -> Answer:
        """Raises: NoAnswerError."""
        return ask(self.running.address, "GET", "/ping", timeout_s=timeout_s or self.patience.ping_s)

    def post(
        self,
        body: bytes | None = None,
        *,
        path: str = "/invocations",
        headers: Mapping[str, str | None] | None = None,
        chunks: int = 0,
    ) -> Answer:
        """The profile's request, or another body.

        Args:
            body: in the place of the profile's.
            path: in the place of /invocations.
            headers: changes to Content-Type and ``Accept: */*``; None takes one out.
            chunks: into how many parts the body is cut and sent chunked; 0 sends its length.

        Raises:
            NoAnswerError: there was none.
        """
        body = self.serving.request if body is None else body
        size = -(-len(body) // chunks) if chunks else 0
        all_headers = {"Content-Type": self.serving.content_type, "Accept": "*/*", **(headers or {})}
        return ask(
            self.running.address,
            "POST",
            path,
            body=[body[start : start + size] for start in range(0, len(body), size)] if chunks else body,
            headers={name: value for name, value in all_headers.items() if value is not None},
            timeout_s=self.patience.request_s,
        )

    def wait_until_ready(self, within_s: float | None = None) -> bool:
        """Asks /ping until it is 200, and then /invocations at once."""
        deadline = self.began + (within_s or self.patience.ready_s)
        while time.monotonic() < deadline and self.running.exit_code() is None:
            with contextlib.suppress(NoAnswerError):
                if self.ping().status == 200:
                    self.ready_s = time.monotonic() - self.began
                    try:
                        self.first = self.post()
                    except NoAnswerError as error:
                        self.first = str(error)
                    return True
            time.sleep(_POLL_S)
        return False


@dataclass
class Servers:
    """The endpoints of one run of checks.

    Args:
        subject: what serves.
        serving: what it is asked.
        model: folder of a trained model.
        patience: for how long is waited.
        work: folder for everything.
        contained: the subject sees /opt/ml, not this machine's paths.
    """

    subject: Subject
    serving: Serving
    model: Path
    patience: Patience
    work: Path
    contained: bool
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _shared: dict[Endpoint, Server] = field(default_factory=dict)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _plain_ready_s: float | None = None
    _answers: bool | None = None

    def shared(self, endpoint: Endpoint | None = None) -> Server:
        """A server that is ready, the same for all that ask for this endpoint.

        Raises:
            BlockedError: it does not get ready.
        """
        server = self.tried(endpoint)
        if server.ready_s is None:
            raise BlockedError("/ping was never 200: see serve.ready")
        return server

    def answering(self) -> Server:
        """The plain endpoint, which answers the profile's request: without that a refusal says nothing.

        Raises:
            BlockedError: it does not get ready, or answers with something else than 200.
        """
        server = self.shared()
        if self._answers is None:
            try:
                self._answers = server.post().status == 200
            except NoAnswerError:
                self._answers = False
        if not self._answers:
            raise BlockedError("the profile's request is not answered with 200: see serve.invocations")
        return server

    def seconds_until_ready(self) -> float:
        """How long the plain endpoint took, now or before; it need not run any more.

        Raises:
            BlockedError: it does not get ready.
        """
        if self._plain_ready_s is None:
            self._plain_ready_s = self.shared().ready_s
        return self._plain_ready_s or 0.0

    def unpromised_s(self) -> float:
        """How long is waited for what nobody promised: it takes about as long as the plain endpoint, or forever."""
        return min(self.patience.ready_s, max(_SECOND_WINDOW_S, 5 * self.seconds_until_ready()))

    def tried(self, endpoint: Endpoint | None = None, within_s: float | None = None) -> Server:
        """The same, ready or not. One is kept at a time, so that the memory of another is free.

        Args:
            endpoint: which.
            within_s: for it to be ready; None is the platform's window.
        """
        endpoint = endpoint or Endpoint()
        if endpoint not in self._shared:
            self.close()
            server = self._stack.enter_context(self.fresh(endpoint))
            server.wait_until_ready(within_s)
            self._shared[endpoint] = server
        return self._shared[endpoint]

    @contextlib.contextmanager
    def fresh(self, endpoint: Endpoint | None = None) -> Iterator[Server]:
        """A server of its own, just started; ended when the block is left."""
        endpoint = endpoint or Endpoint()
        folder = self.work / f"endpoint-{next(self._numbers)}"
        root = folder / "ml"
        for name in ("model", "models"):
            (root / name).mkdir(parents=True)
        if endpoint.multi_model:
            # The platform unpacks these itself, and only then asks for them.
            self._model(endpoint.model, root / "models" / "one" / "model")
            mounts = []
        else:
            mounts = [Mount(self._model(endpoint.model, folder / "model"), "model")]
        running = self.subject.start(
            Start(
                Command.SERVE,
                root,
                folder / "log",
                environment={**self.serving.environment, **dict(endpoint.environment)},
                mounts=mounts,
                port=endpoint.port,
                network_isolation=endpoint.isolated,
            )
        )
        models = "/opt/ml/models" if self.contained else str(root / "models")
        try:
            yield Server(running, self.serving, self.patience, root, folder / "log", time.monotonic(), models)
        finally:
            running.close()

    def close(self) -> None:
        """Ends what is shared."""
        self._shared.clear()
        self._stack.close()

    def _model(self, kind: Model, folder: Path) -> Path:
        if kind is Model.MISSING:
            folder.mkdir(parents=True)
            return folder
        shutil.copytree(self.model, folder)
        if kind is Model.BROKEN:
            for file in folder.rglob("*"):
                if file.is_file():
                    file.write_bytes(_spoilt(file.read_bytes()))
        return folder


def _spoilt(content: bytes) -> bytes:
    """Half of it, and of that every bit turned: neither an archive nor text."""
    return bytes(byte ^ 0xFF for byte in content[: max(1, len(content) // 2)])
