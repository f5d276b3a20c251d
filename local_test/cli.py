"""The command line `python -m local_test COMMAND`: SageMaker on this machine, for any image or pair of programs.

A command is one module in `local_test/commands`, named like the command and listed in `_COMMANDS`:

- its docstring's first line is the one-line help; the rest is printed by `COMMAND --help`.
- `add_arguments(parser)` declares its arguments.
- `run(arguments) -> int` does it and returns the exit code. Results go to stdout, what is said along the way to
  stderr. A user's mistake is a `UsageError` or `SubjectError` with one sentence: exit code 2.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from local_test.simulator.subjects import SubjectError

# In the order of the help.
_COMMANDS: tuple[str, ...] = ("train", "tune", "serve", "transform", "check", "stop", "spot")

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_READER_GONE = 141  # 128 + SIGPIPE


class UsageError(Exception):
    """Arguments that cannot be used; the message names the value found and what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code, 2 for arguments that cannot be used, 130 after Ctrl-C."""
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has gone, as `| head` does; what Python still holds of it must not be tried again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _READER_GONE


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.module.run(arguments)
        return code
    except (UsageError, SubjectError) as error:
        print(f"local_test {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m local_test", description="SageMaker on this machine, for any image or pair of programs."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in _COMMANDS:
        module = importlib.import_module(f"local_test.commands.{name}")
        summary, _, details = (module.__doc__ or "").partition("\n")
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary}\n{details}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(module=module)
    return parser
