"""Lays out a folder as the platform lays out /opt/ml for a training job.

    python local_test/stage.py build/ml --data build/drawn --hp "model=tiny pretrained=false trainable=all"

Writes the three files of input/config and the channels `train` and, with weights, `pretrained`, and empties what an
earlier run left in input, model and output. It only does so in a folder that it made itself, which a marker file
tells. Knows nothing of hyperparameters but that they are strings. `python -m local_test train --results` leaves there
what a job left.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

MARKER_FILE = ".staged"
"""Stands in a folder that this script may empty."""

EMPTIED = ("input", "model", "output")
"""What a new job empties."""

_HOST = "algo-1"


class StageError(Exception):
    """The folder cannot be laid out as asked; the message says what to do."""


def stage(
    root: Path, *, data: Path, weights: Path | None = None, hyperparameters: Mapping[str, str], mounted: bool = False
) -> None:
    """Lays out ``root`` for a new job.

    Args:
        root: stands for /opt/ml; new, empty, or laid out by an earlier call.
        data: folder of the `train` channel: train, valid and test, or one folder per class.
        weights: state-dict file for the `pretrained` channel.
        hyperparameters: names and values, as strings.
        mounted: leave the channel folders out, because Docker mounts them. Otherwise they are links.

    Raises:
        StageError: an input is missing, ``root`` holds files that are not ours to delete, or cannot be written.
    """
    if not data.is_dir() or not any(data.iterdir()):
        raise StageError(f"DATA={data} is not a folder with images in it; name one that holds train, valid and test")
    if weights is not None and not weights.is_file():
        raise StageError(f"WEIGHTS={weights} is not a file; name a state dict, such as mobilenet_v2.pth")
    sources = {"train": data.resolve()} | ({"pretrained": weights.resolve()} if weights else {})
    empty(root, keep=list(sources.values()))
    try:
        _write_input(root, sources, hyperparameters, mounted=mounted)
    except OSError as error:
        raise StageError(f"ML={root} cannot be laid out: {error}") from error


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


def empty(root: Path, *, keep: Sequence[Path] = ()) -> None:
    """Makes ``root`` a folder of local runs, without what an earlier one left in input, model and output.

    Args:
        root: new, empty, or made so before.
        keep: what the new run reads.

    Raises:
        StageError: ``root`` holds files that are not ours to delete, or something to keep lies among what goes.
    """
    _claim(root)
    folders = [root / name for name in EMPTIED]
    for folder in folders:
        for source in keep:
            if source.resolve().is_relative_to(folder.resolve()):
                raise StageError(f"{source} lies in {folder}, which is emptied for a new job; keep it elsewhere")
    for folder in folders:
        try:
            shutil.rmtree(folder)  # removes a link, never what it points to
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StageError(
                f"{folder} of an earlier run cannot be emptied ({error}); a container may have left it to root, then: "
                f"sudo rm -r {shlex.quote(str(root.absolute()))}"
            ) from error


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
    """The command. Returns its exit code: 0 when the folder is ready, 1 when it cannot be laid out."""
    options = _parser().parse_args(arguments)
    try:
        if not options.data:
            raise StageError("DATA is not given; name a folder of images: make train DATA=path/to/images")
        root = options.root.absolute()
        stage(
            root,
            data=Path(options.data),
            weights=Path(options.weights) if options.weights else None,
            hyperparameters=read_hyperparameters(options.hp),
            mounted=options.mounted,
        )
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"laid out {root}; the model will be in {root / 'model'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stage.py", description="Lay out a folder as SageMaker lays out /opt/ml.")
    parser.add_argument("root", metavar="ML", type=Path, help="folder that stands for /opt/ml; new or empty")
    parser.add_argument("--data", default="", metavar="DIR", help="folder with train, valid, test, or class folders")
    parser.add_argument("--weights", default="", metavar="FILE", help="state-dict file for the channel `pretrained`")
    parser.add_argument("--hp", default="", metavar="TEXT", help='hyperparameters, "model=resnet18 lr=0.01"')
    parser.add_argument("--mounted", action="store_true", help="leave the channel folders to Docker's mounts")
    return parser


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
        marker.write_text("Laid out by local_test/stage.py, which empties input, model and output for every new job.\n")
    except OSError as error:
        raise StageError(f"ML={root} cannot be made ({error}); name another folder") from error


def _write(file: Path, value: Mapping[str, object]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
