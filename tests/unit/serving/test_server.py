"""A worker that ends while its model loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A worker's process that ends while its model is loaded by a thread that does not care. `ended` says how.
ENDING = """
import atexit, logging, os, signal, sys, threading, time
from types import SimpleNamespace
from dogbreed.serving import server
from dogbreed.serving.worker import Worker
atexit.register(print, "interpreter torn down")
application = server._Server.__new__(server._Server)
application._loading = threading.Thread(target=time.sleep, args=(loads_s,), daemon=True)
application._loading.start()
application._loading.join(0.2)
worker = Worker.__new__(Worker)
worker.app, worker.pid, worker.booted, worker.tpool = application, os.getpid(), booted, None
try:
    ended(worker)
except SystemExit:
    raise
finally:
    application._leave(None, SimpleNamespace(pid=1))  # of another process, as the first one calls it
    application._leave(None, worker)
"""


@pytest.mark.parametrize(
    ("ended", "booted", "loads_s", "code", "torn_down"),
    [
        ("lambda worker: sys.exit(0)", True, 60, 0, False),
        ("lambda worker: sys.exit()", True, 60, 0, False),
        ("lambda worker: sys.exit(1)", True, 60, 1, False),
        ("lambda worker: None", True, 60, 0, False),
        ("lambda worker: 1 / 0", True, 60, 1, False),
        ("lambda worker: sys.exit(0)", True, 0, 0, True),
        ("lambda worker: worker.handle_quit(signal.SIGQUIT, None)", True, 60, 0, False),
        ("lambda worker: worker.handle_quit(signal.SIGINT, None)", False, 0, 0, False),
    ],
)
def test_a_worker_that_ends_while_its_model_loads_keeps_the_interpreter(
    ended: str, booted: bool, loads_s: int, code: int, torn_down: bool
) -> None:
    given = f"loads_s, booted = {loads_s}, {booted}\nended = {ended}\n{ENDING}"
    done = subprocess.run([sys.executable, "-c", given], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert ("interpreter torn down" in done.stdout) == torn_down
