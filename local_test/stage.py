"""Lays out a folder as the platform lays out /opt/ml for a training job.

    python local_test/stage.py build/ml --data build/drawn --hp "model=tiny pretrained=false trainable=all"

Writes the three files of input/config and the channels `train` and, with weights, `pretrained`, and makes room for the
job: what the last finished one left is moved to model.previous and output.previous, everything else in input, model and
output is deleted. It only does so in a folder that it made itself, which a marker file tells, and in which no job is
running. The command refuses hyperparameters that no job takes before it touches anything; `stage` knows of them only
that they are strings. `python -m local_test train --results` leaves there what a job left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

MARKER_FILE = ".staged"
"""Stands in a folder that this script may empty."""

EMPTIED = ("input", "model", "output")
"""What a new job finds empty."""

# What of it a finished job is remembered by. The model is moved last: until then it says that there is something to
# keep, should this be ended in between.
_RESULTS = ("output", "model")
_PREVIOUS = ".previous"
_BUNDLE = "bundle.json"

_MARKED = (
    "Laid out by local_test/stage.py. A new job deletes input; model and output of the last finished job it moves to "
    "model.previous and output.previous, in the place of older ones, and those of a job without a bundle it deletes.\n"
)

_HOST = "algo-1"
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class StageError(Exception):
    """The folder cannot be laid out as asked; the message says what to do."""


def stage(
    root: Path, *, data: Path, weights: Path | None = None, hyperparameters: Mapping[str, str], mounted: bool = False
) -> Path | None:
    """Lays out ``root`` for a new job.

    Args:
        root: stands for /opt/ml; new, empty, or laid out by an earlier call.
        data: folder of the `train` channel: train, valid and test, or one folder per class.
        weights: state-dict file for the `pretrained` channel.
        hyperparameters: names and values, as strings.
        mounted: leave the channel folders out, because Docker mounts them. Otherwise they are links.

    Returns:
        Where the model is now that the last finished job left; None where there was none.

    Raises:
        StageError: an input is missing, ``root`` holds files that are not ours to delete, or cannot be written.
    """
    sources = _sources(data, weights)
    previous = empty(root, keep=list(sources.values()))
    try:
        _write_input(root, sources, hyperparameters, mounted=mounted)
    except OSError as error:
        raise StageError(f"ML={root} cannot be laid out: {error}") from error
    return previous


def _sources(data: Path, weights: Path | None) -> dict[str, Path]:
    """Channel -> what it holds. Raises `StageError` for what is not there."""
    if not data.is_dir() or not any(data.iterdir()):
        raise StageError(f"DATA={data} is not a folder with images in it; name one that holds train, valid and test")
    if weights is not None and not weights.is_file():
        raise StageError(f"WEIGHTS={weights} is not a file; name a state dict, such as mobilenet_v2.pth")
    return {"train": data.resolve()} | ({"pretrained": weights.resolve()} if weights else {})


def _write_input(root: Path, sources: Mapping[str, Path], hyperparameters: Mapping[str, str], *, mounted: bool) -> None:
    config, channels = root / "input" / "config", root / "input" / "data"
    for folder in (config, channels, root / "model", root / "output" / "data"):
        folder.mkdir(parents=True)
    channel = {
        "TrainingInputMode": "File",
        "S3DistributionType": "FullyReplicated",
        "RecordWrapperType": "None",
    }
    _write(config / "hyperparameters.json", hyperparameters)
    _write(config / "inputdataconfig.json", dict.fromkeys(sources, channel))
    _write(
        config / "resourceconfig.json",
        {"current_host": _HOST, "hosts": [_HOST], "network_interface_name": "eth0", "current_instance_type": "local"},
    )
    for name, source in () if mounted else sources.items():
        link = channels / name
        if source.is_file():
            link.mkdir()
            link /= source.name
        link.symlink_to(source)


def empty(root: Path, *, keep: Sequence[Path] = ()) -> Path | None:
    """Makes ``root`` a folder of local runs, with nothing of an earlier one in input, model and output.

    Where model holds a bundle, which a job writes last, model and output become model.previous and output.previous, in
    the place of older ones: siblings, because what a container has left to root can be renamed where it is and not
    moved. Where the last job left no bundle, they are deleted, and what was moved aside before it stays.

    Args:
        root: new, empty, or made so before.
        keep: what the new run reads.

    Returns:
        Where the model is now that was in model; None where there was no bundle.

    Raises:
        StageError: ``root`` holds files that are not ours to delete, or something to keep lies among what goes.
    """
    _claim(root)
    finished = (root / "model" / _BUNDLE).is_file()
    going = [root / name for name in EMPTIED]
    if finished:
        going += [_previous(root / name) for name in _RESULTS]
    for folder in going:
        for source in keep:
            if source.resolve().is_relative_to(folder.resolve()):
                raise StageError(f"{source} lies in {folder}, which makes room for a new job; keep it elsewhere")
    _remove(root / "input")
    for folder in (root / name for name in _RESULTS):
        if not finished:
            _remove(folder)
        elif folder.exists():
            _remove(_previous(folder))
            try:
                folder.rename(_previous(folder))
            except OSError as error:
                raise StageError(f"{folder} of an earlier run cannot be moved aside: {error}") from error
    return _previous(root / "model") if finished else None


@contextlib.contextmanager
def held(root: Path) -> Iterator[int]:
    """Makes ``root`` a folder of local runs and holds it for one job.

    Yields:
        The descriptor that holds it, not inherited by itself: as long as it or a copy is open in any process, nobody
        else gets one.

    Raises:
        StageError: a job is running on it, or it holds files that are not ours to delete.
    """
    # Only here: a trial of a search is laid out where nobody else is, on whatever system.
    import fcntl

    _claim(root)
    try:
        marker = (root / MARKER_FILE).open("a")
    except OSError as error:
        raise StageError(f"ML={root} cannot be written ({error}); name another folder") from error
    with marker:
        try:
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StageError(f"a job is running on ML={root}; wait for it or name another folder") from error
        except OSError:  # a file system without locks
            pass
        yield marker.fileno()


def said_of(previous: Path | None) -> str:
    """Where the model is that the last finished job left, in a line; empty where there was none."""
    return f"the model that was there before is now in {previous}" if previous else ""


def read_hyperparameters(text: str) -> dict[str, str]:
    """Reads ``name=value`` pairs between blanks; a value with blanks is quoted as in a shell.

    Raises:
        StageError: a part is not a pair, or a name stands twice.
    """
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise StageError(f"HP={text!r} cannot be read: {error}") from error
    found: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not name or not equals:
            raise StageError(f'HP: {part!r} is not name=value; write for example HP="model=resnet18 lr=0.01"')
        if name in found:
            raise StageError(f"HP: {name} is given twice, as {found[name]!r} and as {value!r}")
        found[name] = value
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0 when the folder is ready, 1 when it cannot be laid out.

    Does not return where a program is to take its place.
    """
    options = _parser().parse_args(arguments)
    try:
        if not options.data:
            raise StageError("DATA is not given; name a folder of images: make train DATA=path/to/images")
        hyperparameters = read_hyperparameters(options.hp)
        if not options.unchecked:
            _check(hyperparameters)
        root, data = options.root.absolute(), Path(options.data)
        weights = Path(options.weights) if options.weights else None
        _sources(data, weights)  # before anything is made
        with held(root) as lock:
            previous = stage(root, data=data, weights=weights, hyperparameters=hyperparameters, mounted=options.mounted)
            if said := said_of(previous):
                print(said)
            print(f"laid out {root}; the model will be in {root / 'model'}")
            if options.then is not None:
                _become(options.then, root, lock)
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stage.py", description="Lay out a folder as SageMaker lays out /opt/ml.")
    parser.add_argument("root", metavar="ML", type=Path, help="folder that stands for /opt/ml; new or empty")
    parser.add_argument("--data", default="", metavar="DIR", help="folder with train, valid, test, or class folders")
    parser.add_argument("--weights", default="", metavar="FILE", help="state-dict file for the channel `pretrained`")
    parser.add_argument("--hp", default="", metavar="TEXT", help='hyperparameters, "model=resnet18 lr=0.01"')
    parser.add_argument("--mounted", action="store_true", help="leave the channel folders to Docker's mounts")
    parser.add_argument("--unchecked", action="store_true", help="leave it to the job to refuse hyperparameters")
    parser.add_argument(
        "--then",
        type=Path,
        metavar="PROGRAM",
        help="Python program that then takes this one's place, with ML in SAGEMAKER_BASE_DIR and held until it ends",
    )
    return parser


def _check(hyperparameters: Mapping[str, str]) -> None:
    """Refuses what no job takes, with the job's sentence: the job itself would say so after the folder was emptied."""
    from dogbreed.errors import HyperparameterError
    from dogbreed.hyperparameters import Hyperparameters

    try:
        Hyperparameters.parse(hyperparameters)
    except HyperparameterError as error:
        raise StageError(str(error)) from error


def _become(program: Path, root: Path, lock: int) -> None:
    """Puts a program in the place of this process: it has its id, gets its signals and holds the folder."""
    os.set_inheritable(lock, True)
    os.environ["SAGEMAKER_BASE_DIR"] = str(root.resolve())
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(program)])  # noqa: S606  our own


def _claim(root: Path) -> None:
    """Marks ``root`` as ours; refuses a folder with anything in it that we did not mark before."""
    marker = root / MARKER_FILE
    try:
        if marker.is_file():
            return
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise StageError(
                f"ML={root} holds files that were not put there by a local run, and would be deleted; name another "
                f"folder"
            )
        root.mkdir(parents=True, exist_ok=True)
        marker.write_text(_MARKED)
    except OSError as error:
        raise StageError(f"ML={root} cannot be made ({error}); name another folder") from error


def _previous(folder: Path) -> Path:
    return folder.with_name(folder.name + _PREVIOUS)


def _remove(folder: Path) -> None:
    """Deletes a folder, or a link to one and never what it points to. Raises `StageError` where that cannot be done."""
    try:
        if folder.is_symlink():
            folder.unlink()
        else:
            shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StageError(
            f"{folder} of an earlier run cannot be deleted ({error}); a container may have left it to root, then: "
            f"sudo rm -r {shlex.quote(str(folder.absolute()))}"
        ) from error


def _write(file: Path, value: Mapping[str, object]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
