from __future__ import annotations

import subprocess
import sys


def run(code: str) -> list[str]:
    """What a fresh interpreter prints: what is frozen in this one would stay frozen."""
    given = f"import gc\nfrom dogbreed import collector\n{code}"
    done = subprocess.run([sys.executable, "-c", given], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_what_is_there_when_collecting_resumes_is_looked_at_no_more() -> None:
    enabled, frozen, seen, again = run(
        "collector.pause()\nenabled = gc.isenabled()\nimport json, logging, unittest.mock\ncollector.resume()\n"
        "print(enabled, gc.get_freeze_count(), len(gc.get_objects()), gc.isenabled())"
    )
    assert enabled == "False"
    assert int(frozen) > 10_000
    assert int(seen) < 100
    assert again == "True"


def test_garbage_that_comes_later_is_collected_and_what_was_garbage_before_does_not_stay() -> None:
    code = (
        "import weakref\nclass Node: pass\n"
        "def cycle():\n    node = Node(); node.itself = node\n    return weakref.ref(node)\n"
        "collector.resume()\nbefore = cycle()\ncollector.settle()\nafter = cycle()\n"
        "print(before() is None, gc.collect() > 0, after() is None)"
    )
    assert run(code) == ["True"] * 3
