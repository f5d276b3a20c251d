"""Puts pretrained weights into a folder of the image: `python -m dogbreed.bake NAME ... --to FOLDER`.

The Dockerfile runs this for its build argument BACKBONES. Each file is named as `backbones.load_weights` looks for it,
and holds what that function would have returned, as safetensors, so that a job neither unpickles nor renames anything.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch

from dogbreed import backbones
from dogbreed.errors import JobError, WeightsError


def bake(names: Sequence[str], *, to: Path, given: Path | None = None) -> list[Path]:
    """Writes the weights of each backbone; every name is checked before anything is fetched.

    Args:
        names: torchvision models.
        to: folder to write to; made if it is missing.
        given: folder with files of weights, `resnet50.pth` for resnet50; what it does not hold comes from torchvision's
            hub, with the hash checked.

    Returns:
        The files, in the order of the names.

    Raises:
        HyperparameterError: unknown name.
        WeightsError: a name without pretrained weights, a hub out of reach, or weights of another network.
    """
    for name in names:
        backbones.check_name(name)
        if name == backbones.TINY:
            raise WeightsError(f"no pretrained weights exist for {name}: leave it out")
    to.mkdir(parents=True, exist_ok=True)
    return [_bake_one(name, to, given) for name in names]


def _bake_one(name: str, to: Path, given: Path | None) -> Path:
    if given and any((given / f"{name}{suffix}").is_file() for suffix in backbones.WEIGHT_SUFFIXES):
        weights, _ = backbones.load_weights(name, channel=None, baked=given)
    else:
        try:
            weights = backbones.download_weights(name)
        except WeightsError as error:
            raise WeightsError(f"{error}; give a file {name}.pth, or build where the hub can be reached") from error
    # What does not fit this network is found here, and not by the first job that wants it.
    backbones.build(name, backbones.HeadSpec(classes=2), weights=weights)
    file = to / f"{name}.safetensors"
    safetensors.torch.save_file({key: value.contiguous() for key, value in weights.items()}, file)
    # Readable whoever runs the container; safetensors leaves it to the owner alone.
    file.chmod(0o644)
    return file


def main(arguments: Sequence[str]) -> int:
    """Bakes what the command line names; 1 with one sentence on standard error where that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m dogbreed.bake", description="Put pretrained weights into a folder."
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="torchvision model, as resnet50")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="folder to write to")
    parser.add_argument("--given", type=Path, metavar="FOLDER", help="files of weights, looked at before the hub")
    chosen = parser.parse_args(arguments)
    try:
        files = bake(chosen.names, to=chosen.to, given=chosen.given)
    except JobError as error:
        print(f"bake: {error}", file=sys.stderr)
        return 1
    for file in files:
        print(f"baked {file} ({file.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
