"""The bundle: the files in the model directory that serving loads, and the only door between training and serving.

    bundle.json          what the model is, and everything needed to rebuild it (below)
    model.safetensors    the weights: a state dict, never a pickle
    MODEL_CARD.md        the same for people

Knows networks and files; nothing of jobs, requests or SageMaker. The schema version changes whenever an old reader
would misread a new bundle; an unknown version is refused.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dogbreed import backbones
from dogbreed.backbones import Classifier, HeadSpec
from dogbreed.calibration import Calibration, Familiarity
from dogbreed.engines.agreement import Agreement
from dogbreed.errors import BundleError, DogbreedError, OutputError
from dogbreed.labels import Labels
from dogbreed.preprocessing import PreprocessSpec

SCHEMA_VERSION = 1

BUNDLE_FILE = "bundle.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "MODEL_CARD.md"

MAX_WEIGHTS_BYTES = 8 * 1024**3
"""Three times the largest network that torchvision has. Larger files are refused unread."""

# 100,000 labels and a long history; what is larger was not written here.
_MAX_DOCUMENT_BYTES = 64 * 1024**2
# The bounds of the hyperparameters; a head of 10^9 units would be allocated before its weights are missed. Images are
# resized to a little more than what the network sees.
_MAX_HIDDEN_UNITS = 8192
_MAX_SIDE_PX = 4096

_PACKAGES = ("dogbreed", "torch", "torchvision", "pillow", "safetensors")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A trained model and what is known about it.

    Attributes:
        backbone: model name, see `backbones.names`.
        head: the classifier's shape.
        labels: classes in the order of the outputs.
        preprocessing: how images become inputs.
        weights: state dict of a `Classifier`, on the CPU.
        hyperparameters: name -> value of the job.
        metrics: name -> value; accuracies in [0, 1], losses in nats.
        facts: whatever else a reader should know: source of the weights, number of images, best epoch, ...
        data_fingerprint: SHA-256 over the names and sizes of the training files.
        versions: package -> version that trained it.
        agreements: engine and precision (`engines.engine.describe`) -> how far its answers on validation images were
            from float32, or why nothing was compared. Empty in bundles of before.
        calibration: the temperature of its probabilities; None where none was fitted, and in bundles of before.
        familiarity: from which score on an image counts as one of the classes; None likewise.
    """

    backbone: str
    head: HeadSpec
    labels: Labels
    preprocessing: PreprocessSpec
    weights: Mapping[str, Tensor]
    hyperparameters: Mapping[str, object]
    metrics: Mapping[str, float]
    data_fingerprint: str
    facts: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    agreements: Mapping[str, Agreement | str] = field(default_factory=dict)
    calibration: Calibration | None = None
    familiarity: Familiarity | None = None

    @property
    def temperature(self) -> float:
        """By which logits are divided before the softmax; 1 where none was fitted."""
        return self.calibration.temperature if self.calibration else 1.0

    def build(self) -> Classifier:
        """The network with its weights, which it shares with the bundle: in eval mode, on the CPU.

        Raises:
            BundleError: the weights do not fit the network that the bundle names.
        """
        try:
            model = backbones.rebuild(self.backbone, self.head, self.weights, image_size_px=self.preprocessing.size_px)
        except (DogbreedError, RuntimeError, ValueError, AssertionError) as error:  # torchvision asserts sizes
            raise BundleError(f"the bundle's weights do not fit {self.backbone}: {error}") from error
        return model.eval()


def current_versions() -> dict[str, str]:
    """Versions of what decides a model's answers, for the bundle."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout on PYTHONPATH is not installed
            continue
    return found


def save(bundle: Bundle, directory: Path) -> None:
    """Writes the bundle; a reader sees the old one or the new one, because bundle.json is replaced last.

    Raises:
        OutputError: the directory cannot be written, or its disk is full; nothing is left of the file that failed.
    """
    weights = safetensors.torch.save({name: tensor.contiguous() for name, tensor in bundle.weights.items()})
    files = {
        WEIGHTS_FILE: weights,
        CARD_FILE: _card(bundle).encode(),
        BUNDLE_FILE: (json.dumps(_document(bundle, weights), indent=2) + "\n").encode(),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            _replace(directory / name, data)
    except OSError as error:
        raise OutputError(_why_not(directory, sum(map(len, files.values())), error)) from error


def load(directory: Path) -> Bundle:
    """Reads a bundle and checks that its weights are whole.

    Whoever could write the files is not trusted: nothing in them names another file or holds code, and what they claim
    is compared with what is there before any memory is taken for it.

    Raises:
        BundleError: a file is missing, damaged, or of a schema version that this code does not read.
    """
    document = _read_document(directory / BUNDLE_FILE)
    digest = _digest(directory / WEIGHTS_FILE)
    if digest != document.get("weights_sha256"):
        raise BundleError(
            f"{WEIGHTS_FILE} is not the file that {BUNDLE_FILE} was written with (SHA-256 {digest[:12]}..., expected "
            f"{str(document.get('weights_sha256'))[:12]}...): it is truncated or of another job; copy both again"
        )
    try:
        labels = _labels(document["labels"])
        return Bundle(
            backbone=str(document["backbone"]),
            head=_head(document["head"], len(labels)),
            labels=labels,
            preprocessing=_preprocessing(document["preprocessing"]),
            weights=safetensors.torch.load((directory / WEIGHTS_FILE).read_bytes()),
            hyperparameters=document["hyperparameters"],
            metrics=document["metrics"],
            data_fingerprint=str(document["data_fingerprint"]),
            facts=document["facts"],
            versions=document["versions"],
            agreements={
                name: found if isinstance(found, str) else Agreement.read(found)
                for name, found in document.get("agreements", {}).items()
            },
            calibration=Calibration.read(fitted) if (fitted := document.get("calibration")) is not None else None,
            familiarity=Familiarity.read(fitted) if (fitted := document.get("familiarity")) is not None else None,
        )
    except safetensors.SafetensorError as error:
        raise BundleError(f"{directory / WEIGHTS_FILE} is not a safetensors file: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{directory / BUNDLE_FILE} is damaged: {type(error).__name__} {error}") from error


def _document(bundle: Bundle, weights: bytes) -> dict[str, object]:
    return {
        "schema_version": SCHEMA_VERSION,
        "backbone": bundle.backbone,
        "head": asdict(bundle.head),
        "labels": [
            {"index": index, "name": name, "folder": folder}
            for index, (name, folder) in enumerate(zip(bundle.labels.names, bundle.labels.folders, strict=True))
        ],
        "preprocessing": asdict(bundle.preprocessing),
        "metrics": dict(bundle.metrics),
        "hyperparameters": dict(bundle.hyperparameters),
        "facts": dict(bundle.facts),
        "data_fingerprint": bundle.data_fingerprint,
        "versions": dict(bundle.versions),
        "agreements": {
            name: found if isinstance(found, str) else asdict(found) for name, found in bundle.agreements.items()
        },
        "calibration": asdict(bundle.calibration) if bundle.calibration else None,
        "familiarity": asdict(bundle.familiarity) if bundle.familiarity else None,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }


def _digest(file: Path) -> str:
    """SHA-256 of the weights, read in parts: a sparse file can claim any size."""
    try:
        _check_plain(file)
        size_bytes = file.stat().st_size
        if size_bytes > MAX_WEIGHTS_BYTES:
            raise BundleError(f"{file} has {size_bytes} bytes; more than {MAX_WEIGHTS_BYTES} are not loaded")
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}") from error


def _check_plain(file: Path) -> None:
    """Raises BundleError for a device or a pipe, which have no end and no size; what is not there is not its affair."""
    if file.exists() and not file.is_file():
        raise BundleError(f"{file} is no plain file")


def _read_document(file: Path) -> dict[str, Any]:
    try:
        _check_plain(file)
        if file.stat().st_size > _MAX_DOCUMENT_BYTES:
            raise BundleError(f"{file} has {file.stat().st_size} bytes; more than {_MAX_DOCUMENT_BYTES} are not read")
        # What is written meanwhile, or says that it has no bytes as files of /proc do, has no end either.
        with file.open("rb") as stream:
            text = stream.read(_MAX_DOCUMENT_BYTES + 1)
        if len(text) > _MAX_DOCUMENT_BYTES:
            raise BundleError(f"{file} has more than the {_MAX_DOCUMENT_BYTES} bytes that are read")
        document = json.loads(text.decode("utf-8"))
    except FileNotFoundError:
        held = sorted(entry.name for entry in file.parent.iterdir())[:5] if file.parent.is_dir() else []
        raise BundleError(
            f"{file.parent} holds no {BUNDLE_FILE} (found: {', '.join(held) or 'nothing'}); train a model first, or "
            f"unpack model.tar.gz there"
        ) from None
    except NotADirectoryError:
        raise BundleError(
            f"{file.parent} is no folder; give the one that holds {BUNDLE_FILE}, or unpack model.tar.gz into one"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file} cannot be read as JSON: {error}") from error
    found = document.get("schema_version") if isinstance(document, dict) else None
    if found != SCHEMA_VERSION:
        raise BundleError(
            f"{file} has schema version {found!r}, but this version of dogbreed reads {SCHEMA_VERSION}; serve it with "
            f"the image that trained it, or train again"
        )
    return dict(document)


def _labels(document: Any) -> Labels:  # noqa: ANN401  JSON that may be anything
    """Raises ValueError or TypeError where the labels are none."""
    folders, names = ([label[key] for label in document] for key in ("folder", "name"))
    if not folders or not all(isinstance(text, str) for text in (*folders, *names)):
        raise ValueError("labels must be a list of objects with the strings folder and name")
    return Labels(tuple(folders), tuple(names))


def _head(document: Mapping[str, Any], classes: int) -> HeadSpec:
    head = HeadSpec(**document)
    if head.classes != classes:
        raise ValueError(f"head.classes={head.classes!r}, but there are {classes} labels")
    _whole("head.hidden_units", head.hidden_units, 0, _MAX_HIDDEN_UNITS)
    _number("head.dropout", head.dropout, 0, 1)
    return head


def _preprocessing(document: Mapping[str, Any]) -> PreprocessSpec:
    mean, std = ([_number(key, value, -1e3, 1e3) for value in document[key]] for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or 0 in std:
        raise ValueError(f"mean={mean} and std={std} must be three numbers each, and no std may be 0")
    return PreprocessSpec(
        size_px=_whole("size_px", document["size_px"], 1, _MAX_SIDE_PX),
        resize_px=_whole("resize_px", document["resize_px"], document["size_px"], _MAX_SIDE_PX),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )


def _whole(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} is not a whole number from {low} to {high}")
    return value


def _number(name: str, value: object, low: float, high: float) -> float:
    # NaN, which Python's JSON reads, is between nothing.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} is not a number from {low:g} to {high:g}")
    return float(value)


def _replace(file: Path, data: bytes) -> None:
    """Writes a whole file or none: temporary name on the same file system, sync, rename."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError:
        # It would become part of model.tar.gz, and the failure file may need its room.
        partial.unlink(missing_ok=True)
        raise


def _why_not(directory: Path, needed_bytes: int, error: OSError) -> str:
    """Why a bundle of so many bytes is not in a directory, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free_bytes = shutil.disk_usage(directory).free
        return (
            f"the disk of {directory} is full: the model needs {needed_bytes} bytes, {free_bytes} are free; make room"
        )
    return f"the model cannot be written into {directory}: {error.strerror}; let this process write there"


def _card(bundle: Bundle) -> str:
    """A short model card (Mitchell et al. 2019, Model Cards for Model Reporting)."""
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in bundle.metrics.items())
    facts = "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in bundle.facts.items())
    settings = ", ".join(f"{name}={value}" for name, value in bundle.hyperparameters.items())
    versions = ", ".join(f"{name} {number}" for name, number in bundle.versions.items())
    unknown = ""
    if bundle.familiarity:
        unknown = (
            f"\n`known` is false beside an answer whose familiarity is below {bundle.familiarity.threshold:.3f}: "
            f"{bundle.familiarity.kept:.1%} of {bundle.familiarity.images} validation images were not. The image may "
            f"then show none of the classes. Many others pass as known, most of all what resembles a class.\n"
        )
    return f"""# Model card: {bundle.backbone}, {len(bundle.labels)} classes

An image classifier trained by dogbreed. It answers with one of the classes below for *every* image, also for one that
shows none of them: use it only on images of the kind it was trained on, and look at the probability.
{unknown}
## Classes

{", ".join(bundle.labels.names)}

## Results

| metric | value |
|---|---|
{rows}

Accuracies are shares of correctly labelled images; losses are mean cross entropies in nats. They hold for images like
those of the job's channels, and for no others.

## Training

{facts}
- hyperparameters: {settings}
- data fingerprint: {bundle.data_fingerprint}
- versions: {versions}

## Preprocessing

Upright RGB; shorter side resized to {bundle.preprocessing.resize_px} pixels (bilinear, antialiased), centre crop of \
{bundle.preprocessing.size_px} pixels, mean {bundle.preprocessing.mean} and standard deviation \
{bundle.preprocessing.std} of RGB in [0, 1].
"""


def clone_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """The model's state dict as copies on the CPU, which later training does not change."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
