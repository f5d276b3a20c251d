"""What the contract tests share."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest
from tests.conftest import OptMl


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
