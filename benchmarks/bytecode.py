"""Has Python's bytecode in place before a start is measured, as an installed package and the image have it.

Without it a start compiles torch: seconds that no user sees, and of which each contender has another share.
"""

from __future__ import annotations

import compileall
import importlib.util
import sys
from pathlib import Path

OURS = Path(__file__).resolve().parent.parent / "container"


def prepare() -> None:
    """Compiles our modules; ends the program where those that are installed are not compiled."""
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin and not Path(importlib.util.cache_from_source(spec.origin)).exists():
        sys.exit(
            f"{Path(spec.origin).parent} has no bytecode, so every start would compile it; "
            f"run {sys.executable} -m compileall -q -j 0 {Path(spec.origin).parent.parent}"
        )
    compileall.compile_dir(OURS, quiet=1)
