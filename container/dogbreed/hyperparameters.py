r"""Every hyperparameter, declared once.

A field of `Hyperparameters` carries its type, default, what is allowed, the range that a search explores, and one
sentence of help. From this come the strict parser of SageMaker's strings, the rows of the README's table and the
search spaces. Values that cannot go together are refused here too. Knows nothing of SageMaker's files, torch or the
network.

SageMaker passes every value as a string, bare (`adam`) or JSON-quoted (`"\"adam\""`), depending on the launcher
(aws/sagemaker-python-sdk #5317); both are read, and cast by the declaration, never by the JSON type that is found.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any, Literal, cast

from dogbreed import presets
from dogbreed.errors import HyperparameterError

# Added by SageMaker's tuner and SDK; not ours to read, not the user's mistake either.
_PLATFORM_NAMES = frozenset({"_tuning_objective_metric"})
_PLATFORM_PREFIX = "sagemaker_"

# Epochs that a new head is taught at most before the layers below it learn too, where nobody says.
_MOST_HEAD_EPOCHS = 20
# Warm-up where more than the head learns and nobody says: this share of a short job, one epoch of a long one.
_WARMUP_SHARE = 0.1

_MISSPELT_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

Value = int | float | bool | str

SEARCHED_IN_JOB = (
    "lr",
    "weight-decay",
    "batch-size",
    "optimizer",
    "label-smoothing",
    "mixup",
    "hidden-units",
    "dropout",
)
"""What heads on the same features can differ in."""

_SHAPES_HEAD = ("hidden-units", "dropout")


@dataclass(frozen=True, slots=True)
class SearchRange:
    """What a search explores by default: numbers between low and high, or one of the choices."""

    low: float | None = None
    high: float | None = None
    scale: Literal["linear", "log"] = "linear"
    choices: tuple[Value, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(str(choice) for choice in self.choices)
        return f"{self.low:g} to {self.high:g}" + (", log" if self.scale == "log" else "")


@dataclass(frozen=True, slots=True)
class Declaration:
    """One hyperparameter.

    Attributes:
        name: as the user writes it, with hyphens.
        type: int, float, bool or str.
        help: one sentence, with the unit and special values.
        low: smallest allowed number, inclusive.
        high: largest allowed number, inclusive.
        choices: the only allowed texts; empty means any.
        parts: texts of which one or more, joined by `+`, are allowed beside the choices.
        search: what a search explores, or None.
    """

    name: str
    type: type[int] | type[float] | type[bool] | type[str]
    default: Value
    help: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    parts: tuple[str, ...]
    search: SearchRange | None

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        if self.type is bool:
            return "true or false"
        if self.parts:
            return f"{', '.join(self.choices)}, or any of {', '.join(self.parts)} joined by +"
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.type is str:
            return "text"
        kind = "a whole number" if self.type is int else "a number"
        return f"{kind} from {self.low:.10g} to {self.high:.10g}"

    def parse(self, text: str) -> Value:
        """Reads one value as SageMaker passes it. Raises ValueError when it is not allowed."""
        return self.check(_CASTS[self.type](_unquote(text)))

    def check(self, value: Value) -> Value:
        """Returns the value when it is within bounds and choices, else raises ValueError."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            # Of a whole number of 400 digits isfinite makes an OverflowError.
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(value)
            if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
                raise ValueError(value)
        if self.choices and value not in self.choices and not self._is_joined(str(value)):
            raise ValueError(value)
        return value

    def _is_joined(self, text: str) -> bool:
        given = text.split("+")
        return set(given) <= set(self.parts) and len(set(given)) == len(given)


def _number(default: float, low: float, high: float, help: str, search: SearchRange | None = None) -> Any:  # noqa: ANN401  like dataclasses.field, whose type is that of the field
    return field(default=default, metadata={"low": low, "high": high, "help": help, "search": search})


def _choice(
    default: str,
    choices: tuple[str, ...],
    help: str,
    search: SearchRange | None = None,
    *,
    parts: tuple[str, ...] = (),
) -> Any:  # noqa: ANN401  as above
    return field(default=default, metadata={"choices": choices, "parts": parts, "help": help, "search": search})


def _plain(default: bool | str, help: str, search: SearchRange | None = None) -> Any:  # noqa: ANN401  as above
    return field(default=default, metadata={"help": help, "search": search})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """The values of one job. A field's declaration is the documentation: see `declarations()`."""

    preset: str = _choice(
        presets.NONE,
        (presets.NONE, *presets.PRESETS),
        "A recipe by name, see the table below: its values take the place of the defaults.",
    )
    model: str = _plain(
        "mobilenet_v2",
        "Backbone: any torchvision classification model by name, or `tiny`, a small network that needs no weights.",
        SearchRange(choices=("mobilenet_v2", "resnet18", "resnet34", "resnet50", "densenet121")),
    )
    pretrained: bool = _plain(
        True,
        "Start from pretrained weights (`pretrained` channel, the image's own folder, or torchvision's hub).",
    )
    trainable: str = _choice(
        "head",
        ("head", "last_stage", "all"),
        "What learns: the new head, also the backbone's last stage, or everything.",
    )
    epochs: int = _number(20, 1, 1000, "Passes over the training channel, at most.")
    head_epochs: int = _number(
        -1,
        -1,
        1000,
        "Epochs, at most, that the head learns alone before the layers below it do; 0 none; -1 as many as early "
        "stopping allows, up to 20, or none where the weights are random; with trainable=head it says nothing.",
    )
    batch_size: int = _number(32, 1, 8192, "Samples per optimizer step.", SearchRange(choices=(16, 32, 64, 128, 256)))
    accumulate: int = _number(
        1,
        1,
        8192,
        "Parts in which a batch goes through the network, their gradients added up: as many times less memory for "
        "the same step, but for BatchNorm, which sees the parts: where it learns, each has two samples at least.",
    )
    lr: float = _number(
        0.001,
        1e-7,
        10.0,
        "Peak learning rate; 0.0001 or less suits layers below the head.",
        SearchRange(low=0.0001, high=0.1, scale="log"),
    )
    head_lr_factor: float = _number(1.0, 0.001, 1000.0, "The head's learning rate, as a multiple of lr.")
    layer_decay: float = _number(
        1.0,
        0.01,
        1.0,
        "Factor on the learning rate from one group of layers to the next further from the head (13 groups at most); "
        "1 is the same rate everywhere.",
        SearchRange(low=0.5, high=1.0),
    )
    schedule: str = _choice(
        "cosine",
        ("cosine", "constant", "step", "plateau"),
        "How the learning rate goes on from its peak: to zero, not at all, times gamma every step-epochs, or times "
        "gamma when the objective stalls.",
    )
    warmup_epochs: float = _number(
        -1.0,
        -1.0,
        1000.0,
        "Epochs in which the learning rate rises to its peak; -1 is a tenth of epochs, at most one, and none for "
        "trainable=head.",
    )
    step_epochs: int = _number(10, 1, 1000, "Epochs between two falls of schedule=step.")
    gamma: float = _number(0.1, 0.001, 1.0, "Factor of one fall of schedule=step or plateau.")
    plateau_patience: int = _number(
        2, 1, 1000, "Epochs without a better objective before schedule=plateau lets the learning rate fall."
    )
    optimizer: str = _choice(
        "adamw", ("sgd", "adam", "adamw"), "Optimizer.", SearchRange(choices=("sgd", "adam", "adamw"))
    )
    momentum: float = _number(0.9, 0.0, 0.999, "Momentum of sgd; the others ignore it.")
    nesterov: bool = _plain(False, "Nesterov's form of sgd's momentum.")
    beta1: float = _number(0.9, 0.0, 0.9999, "Decay of the mean gradient of adam and adamw.")
    beta2: float = _number(0.999, 0.0, 0.999999, "Decay of the mean squared gradient of adam and adamw.")
    eps: float = _number(1e-8, 1e-12, 1.0, "Added to the denominator of adam and adamw.")
    weight_decay: float = _number(0.0001, 0.0, 1.0, "Weight decay.", SearchRange(low=0.00001, high=0.1, scale="log"))
    decay_norm_and_bias: bool = _plain(False, "Weight decay also on biases and on the scales of norm layers.")
    clip_norm: float = _number(0.0, 0.0, 1e6, "Largest norm of a step's gradient, over all parameters; 0 is any.")
    label_smoothing: float = _number(
        0.0,
        0.0,
        0.9,
        "Share of each training target that is spread evenly over all classes.",
        SearchRange(low=0.0, high=0.2),
    )
    mixup: float = _number(
        0.0,
        0.0,
        10.0,
        "Alpha of mixup, which blends pairs of a training batch, images or stored features; 0 is off.",
        SearchRange(choices=(0.0, 0.2, 0.4)),
    )
    cutmix: float = _number(
        0.0,
        0.0,
        10.0,
        "Alpha of cutmix, which pastes boxes between pairs of a training batch; 0 is off; beside mixup, each gets half "
        "of the batches.",
    )
    ema: float = _number(
        0.0,
        0.0,
        0.99999,
        "Decay per step of a moving average of the weights, which is what is validated and kept; 0 is off.",
    )
    batch_statistics: str = _choice(
        "auto",
        ("auto", "keep", "learn"),
        "The running statistics of BatchNorm layers that learn: keep those of the pretrained weights, or learn them "
        "from each batch; auto keeps them where pretrained=true.",
    )
    hidden_units: int = _number(
        0,
        0,
        8192,
        "Width of the head's hidden layer; 0 is a plain linear head.",
        SearchRange(choices=(0, 128, 256)),
    )
    dropout: float = _number(
        0.2,
        0.0,
        0.9,
        "Share of features dropped before the head's last layer.",
        SearchRange(low=0.0, high=0.5),
    )
    augment: str = _choice(
        "auto",
        ("auto", "none"),
        "Training views: the centre or random crops (with flips), then what else is named; auto is none for "
        "trainable=head, flip for last_stage, crop for all.",
        parts=("crop", "flip", "trivialaugment", "randaugment", "colour", "erase"),
    )
    crop_scale: float = _number(0.35, 0.01, 1.0, "Share of an image's area that a random crop keeps at least.")
    cache: bool = _plain(
        True, "Run what is frozen once and train the rest on its stored output; false runs it again every epoch."
    )
    cached_views: int = _number(
        4, 1, 1000, "Views of each training image that are stored where augment makes random ones."
    )
    image_size: int = _number(224, 16, 1024, "Side of the square that the network sees, in pixels.")
    precision: str = _choice(
        "auto",
        ("auto", "fp32", "bf16", "fp16"),
        "Arithmetic of the forward pass; auto is bf16 on a GPU that has it, else fp32.",
    )
    objective: str = _choice(
        "validation_accuracy",
        ("validation_accuracy", "validation_loss"),
        "Metric that picks the best epoch and stops early.",
    )
    patience: int = _number(5, 0, 1000, "Epochs without a better objective before the job stops; 0 never stops early.")
    min_delta: float = _number(0.0, 0.0, 1.0, "How much better the objective must be to count.")
    min_epochs: int = _number(3, 0, 1000, "Epochs that run before early stopping may act.")
    validation_fraction: float = _number(
        0.15, 0.01, 0.5, "Share of each class that is held out when there is no validation channel."
    )
    max_corrupt_fraction: float = _number(
        0.05, 0.0, 1.0, "Share of unreadable images above which the job stops instead of skipping them."
    )
    num_workers: int = _number(
        -1,
        -1,
        256,
        "Threads that load images; -1 is one per CPU beside a GPU, else one per two CPUs; 0 loads in the main one.",
    )
    checkpoint_seconds: int = _number(
        120, 0, 86400, "Most seconds of work that a sudden loss may cost, where there is a checkpoint folder."
    )
    insight: bool = _plain(
        True, "Watch the job: hook, samples of the machine, timeline, rules and report; false does none of it."
    )
    rules: str = _plain(
        "",
        "Rules that judge the job, such as `Overfit,Overtraining:patience_validation=3`; empty is all that apply.",
    )
    stop_on: str = _plain("", "Rules that end the job when they find an issue, such as `Overfit,StalledTraining`.")
    tensorboard: bool = _plain(
        False,
        "Write scalars and histograms for TensorBoard to `output/tensorboard`; on as well where the job has a "
        "TensorBoardOutputConfig.",
    )
    search_trials: int = _number(
        0,
        0,
        1000,
        "Heads that the job tries on the stored features before it trains with the best one's values; the first has "
        "the values given, 0 or 1 tries no other. With trainable=last_stage or all it is the head "
        "that learns first, and the rest goes on from the best one.",
    )
    search_over: str = _choice(
        "lr+weight-decay",
        ("all",),
        "What those heads differ in, drawn from the ranges of this table; learning rate and weight decay cost the "
        "least, since heads that differ in nothing else learn as one.",
        parts=SEARCHED_IN_JOB,
    )
    check_precision: bool = _plain(
        True,
        "Hold half precision against float32 on validation images at the end, so that an endpoint may use it where it "
        "costs no accuracy.",
    )
    curate: bool = _plain(
        False,
        "Look for likely label errors, copies of photos and classes to merge, on a page beside the report.",
    )
    seed: int = _number(0, 0, 2**31 - 1, "Seed of everything random.")

    @classmethod
    def parse(cls, raw: Mapping[str, str]) -> Hyperparameters:
        """Reads the strings of a job, strictly.

        Hyphens and underscores are one; names that the platform adds are set apart.

        Raises:
            HyperparameterError: one line that names every bad entry, the value found and what is allowed; or every
                pair of values that cannot go together.
        """
        declared = {_canonical(declaration.name): declaration for declaration in declarations()}
        values: dict[str, Value] = {}
        problems: list[str] = []
        for name, text in raw.items():
            if name in _PLATFORM_NAMES or name.startswith(_PLATFORM_PREFIX):
                continue
            declaration = declared.get(_canonical(name))
            if declaration is None:
                problems.append(_unknown(name, [known.name for known in declared.values()]))
            elif _canonical(name) in values:
                problems.append(f"{declaration.name} is given twice, with a hyphen and with an underscore")
            else:
                try:
                    values[_canonical(name)] = declaration.parse(text)
                except ValueError:
                    problems.append(f"{declaration.name}={text!r} is not allowed; give {declaration.allowed}")
        if problems:
            raise HyperparameterError("hyperparameters: " + "; ".join(problems))
        recipe = presets.PRESETS.get(str(values.get("preset")))
        for name, text in recipe.values.items() if recipe else ():
            values.setdefault(_canonical(name), declared[_canonical(name)].parse(text))
        # Each value was cast by its own declaration, which a type checker cannot follow.
        parsed = cls(**cast(dict[str, Any], values))
        conflicts = parsed.conflicts()
        if conflicts:
            raise HyperparameterError("hyperparameters: " + "; ".join(conflicts))
        return parsed

    def as_dict(self) -> dict[str, Value]:
        """Name, with hyphens, to value; what the bundle records."""
        return {declaration.name: getattr(self, _canonical(declaration.name)) for declaration in declarations()}

    def conflicts(self) -> tuple[str, ...]:
        """A sentence for each pair of values that cannot go together, with the way out."""
        found: list[str] = []
        if self.warmup_epochs >= self.epochs:
            found.append(
                f"warmup-epochs={self.warmup_epochs:g} leaves nothing of epochs={self.epochs}; give fewer, or more "
                f"epochs"
            )
        if self.accumulate > self.batch_size:
            found.append(
                f"accumulate={self.accumulate} cannot split batch-size={self.batch_size}, which counts the samples of "
                f"a whole optimizer step; give at most {self.batch_size}"
            )
        if self.nesterov and self.optimizer == "sgd" and not self.momentum:
            found.append("nesterov=true needs momentum above 0; give momentum=0.9 or nesterov=false")
        if self.schedule == "plateau" and 0 < self.patience <= self.plateau_patience:
            found.append(
                f"plateau-patience={self.plateau_patience} never comes to act before patience={self.patience} ends "
                f"the job; give fewer, or more patience"
            )
        if self.cutmix and self.trainable == "head" and self.cache:
            found.append(
                f"cutmix={self.cutmix:g} needs images or feature maps, and trainable=head learns from stored vectors; "
                f"give mixup instead, trainable=last_stage, or cache=false"
            )
        if self.search_trials > 1 and self.trainable == "head" and not self.cache:
            found.append(
                f"search-trials={self.search_trials} tries heads on stored features, and cache=false has none; give "
                f"cache=true, or search with `launch.py tune`"
            )
        stored = self.cache if self.trainable == "head" else self.most_head_epochs
        if self.curate and not stored:
            given = "cache=false" if self.trainable == "head" else "a head that does not learn alone first"
            found.append(
                f"curate=true needs stored features, and {given} leaves none; give "
                f"{'cache=true' if self.trainable == 'head' else 'head-epochs above 0'}, or look at the folder with "
                f"`python -m dogbreed.curation`"
            )
        if self.search_trials > 1 and self.trainable != "head":
            found += self._head_search_conflicts()
        if self.stop_on and not self.insight:
            found.append(f"stop-on={self.stop_on} needs the rules, which insight=false leaves out; give insight=true")
        if {"trivialaugment", "randaugment"} <= set(self.augment.split("+")):
            found.append(f"augment={self.augment} names two policies; give trivialaugment or randaugment")
        return tuple(found)

    def _head_search_conflicts(self) -> list[str]:
        """Of a search for the head from which fine-tuning starts."""
        found = []
        if not self.most_head_epochs:
            given = "head-epochs=0" if self.head_epochs == 0 else "pretrained=false"
            found.append(
                f"search-trials={self.search_trials} with trainable={self.trainable} tries heads before the rest "
                f"learns, and {given} leaves no epochs for that; give head-epochs=20, or search with `launch.py tune`"
            )
        shaping = [name for name in self.search_over.split("+") if name in _SHAPES_HEAD]
        if shaping:
            found.append(
                f"search-over={self.search_over}: {shaping[0]} is part of the network that trainable={self.trainable} "
                f"goes on with; leave it out, or search with `launch.py tune`"
            )
        return found

    @property
    def keeps_statistics(self) -> bool:
        """Whether BatchNorm keeps its running statistics, with what auto stands for worked out."""
        return self.pretrained if self.batch_statistics == "auto" else self.batch_statistics == "keep"

    @property
    def searched(self) -> tuple[str, ...]:
        """What a search inside the job explores, names with hyphens."""
        if self.search_over != "all":
            return tuple(self.search_over.split("+"))
        kept = () if self.trainable == "head" else _SHAPES_HEAD
        return tuple(name for name in SEARCHED_IN_JOB if name not in kept)

    @property
    def warmup(self) -> float:
        """Epochs of warm-up, with what -1 stands for worked out."""
        if self.warmup_epochs >= 0:
            return self.warmup_epochs
        return 0.0 if self.trainable == "head" else min(1.0, _WARMUP_SHARE * self.epochs)

    @property
    def most_head_epochs(self) -> int:
        """Epochs that the head learns alone at most, before the rest does, with what -1 stands for worked out."""
        if self.trainable == "head":
            return 0
        if self.head_epochs >= 0:
            return self.head_epochs
        return _MOST_HEAD_EPOCHS if self.pretrained else 0


def declarations() -> tuple[Declaration, ...]:
    """All hyperparameters, in the order in which they are documented."""
    types: dict[str, type[int] | type[float] | type[bool] | type[str]] = {
        "int": int,
        "float": float,
        "bool": bool,
        "str": str,
    }
    return tuple(
        Declaration(
            name=declared.name.replace("_", "-"),
            type=types[str(declared.type)],
            default=cast(Value, declared.default),
            help=declared.metadata["help"],
            low=declared.metadata.get("low"),
            high=declared.metadata.get("high"),
            choices=declared.metadata.get("choices", ()),
            parts=declared.metadata.get("parts", ()),
            search=declared.metadata.get("search"),
        )
        for declared in fields(Hyperparameters)
    )


def declared(name: str) -> Declaration:
    """The declaration of a name, with hyphens or underscores; raises HyperparameterError where there is none."""
    known = declarations()
    for declaration in known:
        if _canonical(declaration.name) == _canonical(name):
            return declaration
    raise HyperparameterError(f"hyperparameter {_unknown(name, [one.name for one in known])}")


def markdown_table() -> str:
    """The README's table, one row per hyperparameter; `python -m dogbreed.hyperparameters` prints it.

    A blank line and the presets' table follow.
    """
    rows = ["| name | default | allowed | searched by default | meaning |", "|---|---|---|---|---|"]
    rows += [
        f"| `{one.name}` | `{_text(one.default)}` | {one.allowed} | {one.search or ''} | {one.help} |"
        for one in declarations()
    ]
    return "\n".join(rows) + "\n\n" + presets.markdown_table()


def _canonical(name: str) -> str:
    return name.replace("-", "_")


def _unknown(name: str, known: list[str]) -> str:
    close = get_close_matches(name.replace("_", "-"), known, n=1)
    hint = f"did you mean {close[0]}?" if close else "known are " + ", ".join(known)
    return f"{name!r} is unknown; {hint}"


def _unquote(text: str) -> str:
    """The bare text of a value that a launcher may have JSON-encoded."""
    stripped = text.strip()
    if stripped.startswith('"'):
        try:
            inner = json.loads(stripped)
        except json.JSONDecodeError:
            return stripped
        if isinstance(inner, str):
            return inner.strip()
    return stripped


def _integer(text: str) -> int:
    """A whole number; `32.0` is one, because a tuner may write an integer so, and `32.5` is not."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise ValueError(text) from None
        return int(number)


def _boolean(text: str) -> bool:
    try:
        return _MISSPELT_BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError(text) from None


_CASTS: Mapping[type, Callable[[str], Value]] = {int: _integer, float: float, bool: _boolean, str: str}


def _text(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    print(markdown_table(), end="")
