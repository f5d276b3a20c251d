"""The smdebug hook: what a job saves of its tensors, and how that is read back.

Saves the losses, in TRAIN mode every 10 steps and in EVAL mode at every step: SageMaker's defaults keep one loss in 500
steps, with which the loss rules end in "Error" on any ordinary fine-tuning job. A hook configuration written by the
platform is honoured instead. smdebug is imported only here, and only when a hook is made: its import takes seconds.

Sources: awslabs/sagemaker-debugger 1.0.34, docs/api.md and docs/pytorch.md.
"""

from __future__ import annotations

import logging
from itertools import count
from pathlib import Path
from typing import Any, Literal

from torch import nn

from dogbreed.insight.rules.losses import Losses, Point

logger = logging.getLogger(__name__)

TRAIN_INTERVAL = 10
"""Train losses are saved every so many steps; evaluation losses at every step."""

Mode = Literal["train", "validation", "test"]


class TensorHook:
    """A registered smdebug hook that is told which pass is running. Make it with `attach`."""

    def __init__(self, hook: Any, folder: Path) -> None:  # noqa: ANN401  smdebug has no types
        self._hook = hook
        self.folder = folder

    def set_mode(self, phase: Mode) -> None:
        """Files the next losses under TRAIN, EVAL (validation) or PREDICT (test: it must not look like an epoch)."""
        import smdebug.pytorch as smd

        self._hook.set_mode({"train": smd.modes.TRAIN, "validation": smd.modes.EVAL, "test": smd.modes.PREDICT}[phase])

    def close(self) -> None:
        """Writes what is buffered."""
        self._hook.close()


def attach(model: nn.Module, criterion: nn.Module, *, folder: Path, config: Path | None) -> TensorHook | None:
    """Registers a hook on a model and its criterion.

    Args:
        model: before its first forward pass.
        criterion: a torch loss module, the same object in training and evaluation.
        folder: output folder; when it exists a sibling with a number is taken, because smdebug needs a fresh one.
        config: `debughookconfig.json` of the platform, or None for our own settings.

    Returns:
        The hook; None when smdebug cannot be used: a job never fails because of what watches it. The log says why.
    """
    _quieten_smdebug()
    try:
        import smdebug.pytorch as smd

        if config is not None:
            hook = smd.Hook.create_from_json_file(str(config))
            folder = Path(hook.out_dir)
        else:
            folder = _fresh(folder)
            hook = smd.Hook(
                out_dir=str(folder),
                include_collections=["losses"],
                save_config=smd.SaveConfig(
                    {
                        smd.modes.TRAIN: smd.SaveConfigMode(save_interval=TRAIN_INTERVAL),
                        smd.modes.EVAL: smd.SaveConfigMode(save_interval=1),
                        smd.modes.PREDICT: smd.SaveConfigMode(save_interval=1),
                    }
                ),
            )
        hook.register_module(model)
        hook.register_loss(criterion)
    except Exception as error:  # smdebug asserts and raises as it likes
        logger.warning("no tensors are saved, the debugger hook cannot be used: %s: %s", type(error).__name__, error)
        return None
    return TensorHook(hook, folder)


def read_losses(folder: Path) -> Losses:
    """Reads what a hook saved.

    Returns:
        Train losses at their steps, and the mean loss of each validation pass at the number of train steps before it.

    Raises:
        FileNotFoundError: the folder holds no saved tensors.
    """
    if not any((folder / "collections").glob("*/*_collections.json")):
        raise FileNotFoundError(f"{folder} holds no tensors saved by smdebug")
    _quieten_smdebug()
    from smdebug.pytorch import modes
    from smdebug.trials import create_trial

    trial = create_trial(str(folder))
    names = [name for name in trial.tensor_names(collection="losses") if "_output_" in name]
    if not names:
        return Losses(train=(), evaluation=())
    loss = trial.tensor(names[0])
    train = tuple(Point(step, float(loss.value(step, mode=modes.TRAIN))) for step in loss.steps(mode=modes.TRAIN))
    # smdebug numbers steps per mode and over all modes; train steps between two validation passes leave a gap there.
    passes: list[list[tuple[int, float]]] = []
    for step in loss.steps(mode=modes.EVAL):
        overall = trial.global_step(modes.EVAL, step)
        if not passes or overall != passes[-1][-1][0] + 1:
            passes.append([])
        passes[-1].append((overall, float(loss.value(step, mode=modes.EVAL))))
    evaluation = []
    validated = 0
    for losses in passes:
        evaluation.append(Point(losses[0][0] - validated, sum(value for _, value in losses) / len(losses)))
        validated += len(losses)
    return Losses(train=train, evaluation=tuple(evaluation))


def _fresh(folder: Path) -> Path:
    candidates = (folder if n == 1 else folder.with_name(f"{folder.name}-{n}") for n in count(1))
    return next(candidate for candidate in candidates if not candidate.exists())


def _quieten_smdebug() -> None:
    """Lets smdebug's warnings through our own formatter and drops its chatter; it installs a handler on import."""
    debugger = logging.getLogger("smdebug")
    if not any(isinstance(one, _WarningsOnly) for one in debugger.filters):
        debugger.addFilter(_WarningsOnly())


class _WarningsOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING
