"""Keeps Python's garbage collector away from what is never garbage: the modules.

torch and all that comes with it are 300,000 objects. The collector looks at every one of them several times during the
imports, and again whenever enough others have been made: 70 to 190 ms each time, in which no thread of the process goes
on, and an epoch of a head takes 60 ms.

Source: the documentation of Python's module gc, `gc.freeze`.
"""

from __future__ import annotations

import gc


def pause() -> None:
    """Nothing is collected until `resume`: imports leave hardly any garbage."""
    gc.disable()


def resume() -> None:
    """What there is by now stays for good; of what comes from now on the garbage is collected again."""
    gc.freeze()
    gc.enable()


def settle() -> None:
    """Collects what is garbage now and lets all else stay for good, before work in which a pause would be felt."""
    gc.collect()
    gc.freeze()
