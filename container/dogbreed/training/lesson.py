"""How a model is taught: what the hyperparameters ask for, put together from the parts.

Chooses between training on images and training on the stored outputs of a frozen part, builds loaders, optimizer,
schedule and selection, and goes on from a checkpoint where there is one. Knows no files but the folders it is handed,
and neither bundles nor reports.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from dogbreed.artifacts import clone_weights
from dogbreed.backbones import Classifier, Cut, Trainable
from dogbreed.environment import available_cpus
from dogbreed.errors import ConfigurationError
from dogbreed.hyperparameters import Hyperparameters
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training import compute, frozen
from dogbreed.training.augment import make_view, resolve, stored_views
from dogbreed.training.checkpoint import Checkpoints, identity_of
from dogbreed.training.data import Sample, Splits, View, choose_workers, make_loader
from dogbreed.training.distributed import ALONE, Team
from dogbreed.training.features import FeatureBatches, FeatureStore
from dogbreed.training.frozen import FrozenPart
from dogbreed.training.loop import Batches, FitResult, Loop, NoKeeper
from dogbreed.training.metrics import PassMetrics
from dogbreed.training.optim import make_optimizer, make_schedule
from dogbreed.training.selection import Selection
from dogbreed.training.state import FitState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lesson:
    """A loop and what decides how it is fed.

    Attributes:
        loop: over images.
        spec: preprocessing of the images.
        hyperparameters: of the job.
    """

    loop: Loop
    spec: PreprocessSpec
    hyperparameters: Hyperparameters

    def teach(
        self, model: Classifier, cut: Cut | None, splits: Splits, *, cache: Path, checkpoints: Path | None
    ) -> FitResult:
        """Trains what is trainable in ``model`` and leaves the best weights in it.

        Args:
            model: on the compute device.
            cut: of the model behind its frozen part; None trains on images.
            splits: of the job.
            cache: folder for stored outputs.
            checkpoints: folder for the state of the fit, or None.

        Raises:
            JobError: the images, the checkpoint or a folder cannot be used, or the loss is not finite any more.
        """
        team = self.loop.team
        keeper = None
        if checkpoints is not None and team.leads:
            identity = identity_of(self.hyperparameters.as_dict(), splits.labels.folders, splits.fingerprint)
            keeper = Checkpoints(checkpoints, identity, interval_s=self.hyperparameters.checkpoint_seconds)
        if cut is None:
            view = make_view(self.hyperparameters.augment, self.spec, self._trainable)
            fit = self._fit(
                self.images(splits.train, view, shuffle=True),
                self.images(splits.validation, self.spec.centre_view),
                keeper,
            )
            model.load_state_dict(fit.weights)
            return fit
        stores = self._store(cut, splits, cache)
        if stores is None:
            return FitResult((), 0, None, clone_weights(cut.rest), "stop signal")
        on_outputs = replace(self, loop=frozen.on_outputs(self.loop, cut))
        fit = (
            on_outputs._fit_head(stores, keeper)
            if self._trainable == "head"
            else on_outputs._fit_stores(stores, keeper)
        )
        cut.rest.load_state_dict(fit.weights)
        return fit

    def _fit_stores(self, stores: tuple[FeatureStore, FeatureStore], keeper: Checkpoints | None) -> FitResult:
        """Trains the loop's model on stored outputs."""
        feed = partial(
            FeatureBatches,
            batch_size=self.hyperparameters.batch_size,
            seed=self.hyperparameters.seed,
            device=self.loop.compute.device,
            team=self.loop.team,
        )
        return self._fit(feed(stores[0], shuffle=True), feed(stores[1], shuffle=False), keeper)

    def _fit_head(self, stores: tuple[FeatureStore, FeatureStore], keeper: Checkpoints | None) -> FitResult:
        """As `_fit_stores`, by the leader: a step of a head takes less time than telling others of its gradients."""
        team = self.loop.team
        if team.leads:
            fit = replace(self, loop=replace(self.loop, team=ALONE))._fit_stores(stores, keeper)
            team.share((fit.weights, fit.best_epoch, fit.ended_by))
            return fit
        weights, best_epoch, ended_by = team.share((clone_weights(self.loop.model), 0, ""))
        return FitResult((), best_epoch, None, weights, ended_by)

    def images(
        self, samples: Sequence[Sample], view: View, *, shuffle: bool = False, team: Team | None = None
    ) -> Batches:
        """Batches of decoded images; of each batch the share of this process in ``team``, by default the loop's."""
        batch_size, device = self.hyperparameters.batch_size, self.loop.compute.device
        team = team or self.loop.team
        cpus = max(1, available_cpus() // self.loop.team.local_size)
        return make_loader(
            samples,
            view,
            batch_size=batch_size,
            workers=choose_workers(
                self.hyperparameters.num_workers,
                # Where the CPU is also what trains, half of it is left to that.
                cpus=cpus if device.type == "cuda" else math.ceil(cpus / 2),
                batches=math.ceil(len(samples) / batch_size),
                batch_bytes=batch_size * 3 * self.spec.size_px**2,
            ),
            seed=self.hyperparameters.seed,
            shuffle=shuffle,
            pin=device.type == "cuda",
            rank=team.rank,
            ranks=team.size,
        )

    @property
    def _trainable(self) -> Trainable:
        return cast(Trainable, self.hyperparameters.trainable)

    def _store(self, cut: Cut, splits: Splits, cache: Path) -> tuple[FeatureStore, FeatureStore] | None:
        """The frozen part's outputs for training and validation; None after a stop signal."""
        chosen = self.hyperparameters
        dtype = compute.frozen_dtype(chosen.precision, self.loop.compute.device, cut.frozen)
        logger.info("the network up to %s is frozen and runs once, in %s", cut.name, str(dtype).removeprefix("torch."))
        run = partial(
            frozen.store_outputs,
            FrozenPart(cut, chosen.model, self.spec, dtype, cache),
            self.loop,
            # Every process runs the frozen part over samples of its own.
            make_batches=partial(self.images, team=ALONE),
            seed=chosen.seed,
        )
        views = stored_views(resolve(chosen.augment, self._trainable), self.spec, chosen.cached_views)
        try:
            train = run(samples=splits.train, views=views)
            validation = run(samples=splits.validation, views=stored_views("none", self.spec, 1)) if train else None
        except OSError as error:
            raise ConfigurationError(
                f"the outputs of the frozen part cannot be stored in {cache}: {error}; free some space there, name "
                f"another folder in DOGBREED_CACHE_DIR, or set cache=false"
            ) from error
        return (train, validation) if train and validation else None

    def _fit(self, train: Batches, validation: Batches, keeper: Checkpoints | None) -> FitResult:
        """Trains the loop's model, from the newest checkpoint on where there is one."""
        chosen = self.hyperparameters
        optimizer = make_optimizer(chosen, self.loop.model)
        state = FitState(
            model=self.loop.model,
            optimizer=optimizer,
            schedule=make_schedule(chosen, optimizer, steps=len(train) * chosen.epochs),
            scaler=self.loop.compute.make_scaler(),
            selection=Selection(
                maximise=chosen.objective.endswith("accuracy"),
                patience=chosen.patience,
                min_delta=chosen.min_delta,
                min_epochs=chosen.min_epochs,
            ),
            learnt=PassMetrics(self.loop.compute.device),
        )
        team = self.loop.team
        kept = team.share(keeper.newest() if keeper else None)
        if kept is not None:
            state.load_state_dict(kept)
            if not team.leads:  # the leader goes on with the sums of all
                state.learnt = PassMetrics(self.loop.compute.device)
        return self.loop.fit(
            train, validation, state, epochs=chosen.epochs, objective=chosen.objective, keeper=keeper or NoKeeper()
        )
