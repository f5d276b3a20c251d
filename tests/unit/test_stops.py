"""A stop during the imports ends a program at once, in one line; what is ignored stays ignored."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

# Sends this process a signal when a module is looked for, as if somebody had pressed Ctrl-C right then.
STOP_AT = """
import os, runpy, signal, sys
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Stop())
sys.argv = {argv!r}
"""


def run(code: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    # A shell that starts the tests in the background has them, and this, ignore Ctrl-C.
    given = f"import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    return subprocess.run([sys.executable, "-c", given], capture_output=True, text=True, timeout=120, env=environ)


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 0, "SIGTERM: ended before anything was begun\n")],
)
@pytest.mark.parametrize(
    ("command", "module"), [("train", "dogbreed.training.job"), ("serve", "dogbreed.serving.server")]
)
def test_a_stop_during_the_imports_of_a_job_or_a_server(
    command: str, module: str, number: signal.Signals, code: int, line: str
) -> None:
    stop_at = STOP_AT.format(module=module, number=int(number), argv=[command])
    script = REPOSITORY / "container" / command
    done = run(f"{stop_at}runpy.run_path({str(script)!r}, run_name='__main__')")
    assert (done.returncode, done.stderr) == (code, line)


@pytest.mark.parametrize("module", ["scripts.launcher.cli", "scripts.launcher.aws", "scripts.launcher.commands.tune"])
def test_ctrl_c_during_the_imports_of_the_launcher(module: str) -> None:
    script = REPOSITORY / "scripts" / "launch.py"
    stop_at = STOP_AT.format(module=module, number=int(signal.SIGINT), argv=["launch.py", "tune", "--help"])
    done = run(f"{stop_at}runpy.run_path({str(script)!r}, run_name='__main__')")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("module", ["dogbreed.logs", "dogbreed.training.curating"])
def test_ctrl_c_ends_curation_and_leaves_nothing(module: str, tmp_path: Path) -> None:
    stop_at = STOP_AT.format(
        module=module, number=int(signal.SIGINT), argv=["curation", "photos", "--model", "model", "--output", "found"]
    )
    done = run(
        f"import os\nos.chdir({str(tmp_path)!r})\n{stop_at}runpy.run_module('dogbreed.curation', run_name='__main__')",
        {"TMPDIR": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_what_is_ignored_stays_ignored() -> None:
    done = run(
        "import os\nfrom dogbreed import stops\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nstops.leave_on_stops()\n"
        "os.kill(os.getpid(), signal.SIGINT)\nprint('goes on')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "goes on\n", "")


def test_afterwards_ctrl_c_is_what_it_was() -> None:
    done = run(
        "import os\nfrom dogbreed import stops\nwith stops.leaving_on_interrupt():\n    pass\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    print('raised')"
    )
    assert (done.returncode, done.stdout) == (0, "raised\n")
