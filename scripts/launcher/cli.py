"""The command line of `scripts/launch.py`: reads the arguments, prints the plan or runs it, reports errors.

A command is one module in `scripts/launcher/commands`, named like the command and listed in `_COMMANDS`:

- its docstring's first line is the one-line help; the rest is printed by `launch.py COMMAND --help`.
- `add_arguments(parser)` declares its arguments; `settings.add_arguments(parser, "role", "bucket")` those that it
  takes from the environment as well. `--region`, `--dry-run` and `-h` are declared for it.
- `plan(arguments, settings) -> list[Call]` builds every request that the arguments alone decide. Pure: no network; it
  may read local files. Raises `SettingError` for what is missing or does not go together.
- `run(calls, context) -> int` executes the plan with ``context.aws`` and returns the exit code. It may ask AWS for
  more while it does (pages, descriptions, the progress of a job). Results go to stdout by `print`, everything that is
  said along the way to stderr by `context.say`; sleeping is `context.sleep`, so that tests need not wait.
- `needs_region(arguments) -> bool`, optional: False when the arguments lead to no call of AWS.

`--dry-run` prints the plan as JSON on stdout and does nothing; `run` is not called. Errors are `LaunchError`s, which
end the command with one sentence; `KeyboardInterrupt` may be left to this module, or caught to say what goes on.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import NoReturn

from scripts.launcher import settings as settings_module
from scripts.launcher.aws import Aws, configured_region, connect
from scripts.launcher.context import Context
from scripts.launcher.errors import LaunchError
from scripts.launcher.plan import as_json

# In the order of the help.
_COMMANDS = (
    *("upload", "tune", "train", "report"),
    *("deploy", "predict", "evaluate", "transform", "api", "delete"),
    *("status", "logs", "stop"),
)

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_EPILOG = """\
Credentials come from AWS_PROFILE, the AWS_* variables or the machine's role, as for the aws command; AWS_ENDPOINT_URL
sends everything elsewhere. `launch.py COMMAND --help` says more; `--dry-run` shows the requests and sends none."""


def main(
    argv: Sequence[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    connect: Callable[[str], Aws] = connect,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Runs one command.

    Args:
        argv: arguments without the program's name; default sys.argv.
        environ: environment variables; boto3 reads the process's own besides.
        connect: region -> what executes the calls.
        sleep: takes seconds.

    Returns:
        0, 1 when something failed, 2 for arguments that cannot be used, 130 after Ctrl-C.
    """
    name = ""
    try:
        arguments = _parse(argv)
        command: ModuleType = arguments.module
        name = f" {arguments.command}"
        settings = settings_module.read_settings(arguments, environ, configured_region=configured_region())
        calls = command.plan(arguments, settings)
        if arguments.dry_run:
            print(as_json(calls), flush=True)
            return 0
        needs_region = getattr(command, "needs_region", lambda arguments: True)
        region = settings.region if needs_region(arguments) else ""
        context = Context(arguments, settings, connect(region), sleep)
        code: int = command.run(calls, context)
        sys.stdout.flush()
        return code
    except LaunchError as error:
        print(f"launch.py{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our stdout, `head` say, has what it wanted. Python would complain of it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Parser(argparse.ArgumentParser):
    """Says what is wrong below one line of usage; all options of a command are a page, on which it would be lost."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with 2."""
        usage = self._get_formatter()
        usage.add_usage(None, [action for action in self._actions if not action.option_strings], [])
        wanted = usage.format_help().strip()
        self.exit(2, f"{wanted} [options]; `{self.prog} --help` lists them\n{self.prog}: error: {message}\n")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # Of a list without options argparse takes what stands before the first option, and does not know the rest.
    if rest and (not hasattr(arguments, "files") or any(word.startswith("-") and word != "-" for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.files = [*arguments.files, *rest]
    return arguments


def _parser() -> argparse.ArgumentParser:
    modules = {name: importlib.import_module(f"scripts.launcher.commands.{name}") for name in _COMMANDS}
    documentation = {name: (module.__doc__ or "").strip() for name, module in modules.items()}
    # argparse would list them too, and break the longest name off its line.
    listed = "\n".join(f"  {name:<11}{text.splitlines()[0].rstrip('.')}" for name, text in documentation.items())
    parser = _Parser(
        prog="launch.py",
        description=f"Train, deploy and look after the classifier in an AWS account.\n\ncommands:\n{listed}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in modules.items():
        sub = commands.add_parser(
            name, description=documentation[name], formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(sub)
        common = sub.add_argument_group("for every command")
        common.add_argument("--region", metavar="REGION", help="AWS region (AWS_REGION, AWS_DEFAULT_REGION)")
        common.add_argument("--dry-run", action="store_true", help="print the requests as JSON and send nothing")
        sub.set_defaults(module=module)
    return parser
