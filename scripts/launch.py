#!/usr/bin/env python3
"""Everything that happens in an AWS account: `scripts/launch.py --help`.

Short on purpose: it only finds the repository's modules; `scripts/launcher` does the work.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parent.parent
_LIBRARIES = ("boto3", "tqdm")

if sys.version_info < (3, 11) or not all(find_spec(name) for name in _LIBRARIES):
    sys.exit(
        f"launch.py needs Python 3.11 or newer with {' and '.join(_LIBRARIES)}, which {sys.executable} is not: run "
        "`make install` and then `.venv/bin/python scripts/launch.py`, or install requirements/launch.txt here"
    )

# `dogbreed` stands for itself here: the AWS side needs some of its pure modules, and neither torch nor an installation.
sys.dont_write_bytecode = True  # nothing is written in the checkout
sys.path[:0] = [str(_REPOSITORY), str(_REPOSITORY / "container")]

from dogbreed import stops  # noqa: E402  found by the line above

with stops.leaving_on_interrupt():
    from scripts.launcher.cli import main

if __name__ == "__main__":
    sys.exit(main())
