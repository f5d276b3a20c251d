"""What the contract tests share."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.conftest import OptMl
from tests.server_process import Server, start, stop_hard


@pytest.fixture
def in_process(opt_ml: OptMl, monkeypatch: pytest.MonkeyPatch) -> Iterator[OptMl]:
    """Runs `job.main()` here instead of in a process of its own, which costs seconds; undoes what it changes."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(opt_ml.root))
    monkeypatch.setenv("DOGBREED_WEIGHTS_DIR", str(opt_ml.root / "no-weights"))
    yield opt_ml
    root.handlers[:] = before
    root.setLevel(level)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers of a test's own on a folder of its own, and ends them."""
    begun: list[Server] = []

    def begin(**variables: str) -> Server:
        begun.append(start(tmp_path, **variables))
        return begun[-1]

    yield begin
    for one in begun:
        stop_hard(one)
