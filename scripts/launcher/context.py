"""What a running command works with: its arguments and settings, AWS, and a clock.

Knows no command, and neither the command line that builds it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

from scripts.launcher.aws import Aws
from scripts.launcher.settings import Settings


@dataclass(frozen=True, slots=True)
class Context:
    """What a command works with.

    Attributes:
        arguments: as parsed.
        settings: as `plan` had them.
        aws: executes calls.
        sleep: takes seconds.
    """

    arguments: argparse.Namespace
    settings: Settings
    aws: Aws
    sleep: Callable[[float], None]

    def say(self, text: str) -> None:
        """Tells the person something that is not the result: on stderr, at once."""
        print(text, file=sys.stderr, flush=True)
