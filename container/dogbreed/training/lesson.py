"""How a model is taught: what the hyperparameters ask for, put together from the parts.

What is frozen runs once and is stored; a head that has layers below it to teach learns alone first, on the stored
features of the untouched backbone, because a random head's gradients would spoil them (LP-FT, Kumar et al. 2022,
Fine-Tuning can Distort Pretrained Features); then all that is trainable learns, from a checkpoint on where there is
one. Where heads are to be tried, they are tried on the stored features first, and the best one's recipe is what the job
goes on with, as if it had been given; before fine-tuning it is the recipe of the head that learns alone. Knows no files
but the folders it is handed, and neither bundles nor reports.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dogbreed import backbones, calibration, collector
from dogbreed.artifacts import clone_weights
from dogbreed.backbones import Classifier, Cut, HeadSpec, Rest, Trainable
from dogbreed.calibration import Calibration, Familiarity, Heard
from dogbreed.engines.agreement import most_doubtful
from dogbreed.environment import available_cpus
from dogbreed.errors import ConfigurationError
from dogbreed.hyperparameters import Hyperparameters
from dogbreed.preprocessing import PreprocessSpec
from dogbreed.training import compute, frozen, mapped, tryout
from dogbreed.training.augment import make_view, resolve, stored_views
from dogbreed.training.averaging import make_averaging
from dogbreed.training.checkpoint import Checkpoints, identity_of
from dogbreed.training.console import Quietly
from dogbreed.training.data import (
    EpochLoader,
    ImageSource,
    Loading,
    Sample,
    Splits,
    View,
    advise_workers,
    choose_workers,
    make_loader,
)
from dogbreed.training.distributed import ALONE, Team
from dogbreed.training.features import STOPPED, FeatureBatches, FeatureStore, Stopped
from dogbreed.training.frozen import FrozenPart
from dogbreed.training.images import ReducedImages
from dogbreed.training.loop import Batches, FitResult, Loop, NoKeeper, Phase, learns_statistics
from dogbreed.training.metrics import PassMetrics
from dogbreed.training.mixing import SmoothedCrossEntropyLoss, make_mixing, unmixed
from dogbreed.training.optim import make_optimizer, make_schedule
from dogbreed.training.selection import Selection
from dogbreed.training.sources import digest_files
from dogbreed.training.state import FitState

logger = logging.getLogger(__name__)

_SEARCH_FILE = "search.json"
_FEWEST_TRIALS = 2

Stores = tuple[FeatureStore, FeatureStore]
"""Of training and validation."""

Kept = Mapping[str, Any]
"""What `FitState.state_dict` made."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What is known from the answers to the validation images; of none of them where a stop came first.

    Attributes:
        calibration: of the probabilities; None where none was fitted.
        familiarity: from which score on an image is one of the classes; None likewise.
        doubtful_first: numbers of the images that could be read, those with the most doubtful answers first.
    """

    calibration: Calibration | None = None
    familiarity: Familiarity | None = None
    doubtful_first: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Taught:
    """What a lesson came to.

    Attributes:
        fit: of what was trainable.
        network: makes, once, the form of the taught classifier that evaluates quickest: normalised images -> logits.
        head_metrics: of the head that learnt alone first; empty when none did.
        hyperparameters: that it was taught with: the given ones, or those of the best head that was tried.
        search: what was tried, see `tryout.report`; empty when nothing was.
        fitted: to the validation images.
        features: what a head learns from, of the backbone before it learned itself; None where none were stored.
    """

    fit: FitResult
    network: Callable[[], nn.Module]
    head_metrics: dict[str, float]
    hyperparameters: Hyperparameters
    search: Mapping[str, Any] = field(default_factory=dict)
    fitted: Fitted = field(default_factory=Fitted)
    features: Stores | None = None


@dataclass(frozen=True, slots=True)
class Lesson:
    """A loop and what decides how it is fed.

    Attributes:
        loop: over images.
        spec: preprocessing of the images.
        hyperparameters: of the job.
        watch: told of the module that is about to learn, its criterion, and what says by which factor its gradients are
            larger than they are; and of who loads its images, None where it learns from stored outputs.
    """

    loop: Loop
    spec: PreprocessSpec
    hyperparameters: Hyperparameters
    watch: Callable[[nn.Module, nn.Module, Callable[[], float], Loading | None], object] = lambda *_: None

    def teach(self, model: Classifier, splits: Splits, *, cache: Path, checkpoints: Path | None) -> Taught:
        """Trains what is trainable in ``model`` and leaves the best weights in it.

        Args:
            model: on the compute device, in its final frozen or trainable state.
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
        kept = team.share(keeper.newest() if keeper else None)

        cut = backbones.cut(model, self.hyperparameters.image_size) if self.hyperparameters.cache else None
        stores = self._store(cut, splits, cache) if cut else None
        learning = cut.rest if cut else model
        if stores is STOPPED:
            return Taught(_stopped(learning), lambda: model, {}, self.hyperparameters)
        searches = self.hyperparameters.search_trials >= _FEWEST_TRIALS
        if cut and stores and searches and self._trainable == "head":
            judged = self._judged(splits)
            return self._teach_best(
                model, cut, stores, keeper=keeper, kept=kept, checkpoints=checkpoints, judged=judged
            )
        head, search = None, self._kept_search(checkpoints) if kept is not None else {}
        features = stores if self._trainable == "head" else None
        if self.hyperparameters.most_head_epochs and kept is None:
            head, search, features = self._learn_head(model, cut, stores, splits, cache)
            if head.ended_by == "stop signal":
                fit = replace(head, weights=clone_weights(learning))
                return Taught(fit, lambda: model, head.metrics, self.hyperparameters, search)
            if search and checkpoints is not None and team.leads:
                _write_search(checkpoints / _SEARCH_FILE, search)

        if cut is None or stores is None:
            train, validation = self._images_of(splits, cache)
            fit = self._fit(train, validation, keeper, kept, head)
            self._advise(fit, len(splits.train))
        elif self._trainable == "head":
            fit = self._on(cut)._fit_by_leader(stores, keeper, kept)
        else:
            lesson = self._on(cut)
            fit = lesson._fit(*lesson._feed(stores), keeper, kept, head)
        learning.load_state_dict(fit.weights)
        if head is not None and not fit.best_epoch and fit.history:
            logger.info("no epoch bettered the head alone, which is kept; trainable=head gives the same in less time")
        network = functools.cache(partial(self._whole, cut, self._judged(splits))) if cut else lambda: model
        if cut is None or stores is None:
            fitted = self._calibrate(self.loop, validation)
        else:
            fitted = self._on(cut)._calibrate_by_leader(stores)
        return Taught(
            fit,
            network,
            head.metrics if head else {},
            self.hyperparameters,
            search,
            fitted=fitted,
            features=features,
        )

    def images(
        self,
        samples: Sequence[Sample],
        view: View,
        first: int = 0,
        *,
        shuffle: bool = False,
        team: Team | None = None,
        source: ImageSource | None = None,
    ) -> EpochLoader:
        """Batches of decoded images; of each batch the share of this process in ``team``, by default the loop's.

        ``first`` is the first one's position in its split, see `make_loader`.
        """
        batch_size, device = self.hyperparameters.batch_size, self.loop.compute.device
        team = team or self.loop.team
        batches = None
        if team.apart:
            # As many batches on every process, each with its part of what all hosts hold together.
            batches = math.ceil(team.total(len(samples) if team.local_rank == 0 else 0)[0] / batch_size)
            samples = team.part_of(samples)
        return make_loader(
            samples,
            view,
            first,
            batch_size=batch_size,
            workers=self.workers(len(samples)),
            seed=self.hyperparameters.seed,
            shuffle=shuffle,
            pin=device.type == "cuda",
            images=source,
            rank=0 if team.apart else team.rank,
            ranks=1 if team.apart else team.size,
            batches=batches,
        )

    def _loading(self, train: Batches, validation: Batches) -> Loading | None:
        """Who loads the images; None where there is nothing to decode."""
        loaders = [one for one in (train, validation) if isinstance(one, EpochLoader)]
        if not loaders:
            return None
        threads = max(one.workers for one in loaders)
        return Loading(threads, self.loop.team.local_size, lambda: sum(one.worked_s for one in loaders))

    def workers(self, samples: int) -> int:
        """Loader threads for so many samples."""
        batch_size = self.hyperparameters.batch_size
        cpus = max(1, available_cpus() // self.loop.team.local_size)
        return choose_workers(
            self.hyperparameters.num_workers,
            # Where the CPU is also what trains, half of it is left to that.
            cpus=cpus if self.loop.compute.device.type == "cuda" else math.ceil(cpus / 2),
            batches=math.ceil(samples / batch_size),
            batch_bytes=batch_size * 3 * self.spec.size_px**2,
        )

    def _images_of(self, splits: Splits, cache: Path) -> tuple[EpochLoader, EpochLoader]:
        """Training and validation images; from the second epoch on they come reduced from a store."""
        chosen = self.hyperparameters
        augment = resolve(chosen.augment, self._trainable)
        view = make_view(augment, self.spec, self._trainable, chosen.crop_scale)
        # No crop is then smaller than what the network sees, so that none is blown up more than it would be anyway.
        # The centre needs no more than it is resized to.
        crops = math.ceil(self.spec.size_px / math.sqrt(chosen.crop_scale))
        shorter = max(self.spec.resize_px, crops) if "crop" in augment.split("+") else self.spec.resize_px
        folder = cache if chosen.cache and chosen.epochs > 1 else None
        loaders = []
        for samples, its_view, side, shuffle in (
            (splits.train, view, shorter, True),
            (splits.validation, self.spec.centre_view, self.spec.resize_px, False),
        ):
            own = self.loop.team.part_of(samples) if self.loop.team.apart else samples
            source = ReducedImages(own, side, folder, contents=self._contents(samples) if folder else None)
            loaders.append(self.images(samples, its_view, shuffle=shuffle, source=source))
        return loaders[0], loaders[1]

    def _contents(self, samples: Sequence[Sample]) -> Sequence[str]:
        """Of the files whose images this process may read; see `digest_files`. Each is read by one process of all."""
        team = self.loop.team
        own = digest_files(team.part_of(samples))
        return own if team.apart else [digest for digests in team.gather(own) for digest in digests]

    def _advise(self, fit: FitResult, samples: int) -> None:
        """Says what to change when the loader was the bottleneck; not of the first epoch, which fills stores."""
        counted = fit.history[1:] or fit.history
        if counted:
            share = sum(result.waiting_share for result in counted) / len(counted)
            cpus = max(1, available_cpus() // self.loop.team.local_size)
            advice = advise_workers(share, cpus, self.workers(samples))
            if advice:
                logger.info("%s", advice)

    def _calibrate(self, loop: Loop, validation: Batches) -> Fitted:
        """Fits what is fitted to the answers of a loop's model; nothing after a stop, too."""
        # As of a test, the hook takes no answers and the observers count no epoch.
        judge = replace(
            loop, criterion=SmoothedCrossEntropyLoss(), observers=[Quietly(observer) for observer in loop.observers]
        )
        heard = Heard()
        if judge.evaluate(validation, Phase.CALIBRATION, epoch=1, hear=heard.hear) is None:
            return Fitted()
        parts = loop.team.gather(heard.all())
        logits, truth = ([batch for part in parts for batch in part[side]] for side in (0, 1))
        logits_NK = torch.cat(logits)
        found = calibration.fit(logits_NK, torch.cat(truth))
        familiar = calibration.fit_familiarity(logits_NK)
        if loop.team.leads:
            logger.info("calibration: %s", found or "none, which is best here")
            logger.info("familiarity: %s", familiar or f"none, fewer than {calibration.MIN_IMAGES} validation images")
        return Fitted(found, familiar, most_doubtful(logits_NK.log_softmax(dim=1)))

    def _calibrate_by_leader(self, stores: Stores) -> Fitted:
        """The same on stored outputs, which takes less time than telling others of it; nothing for the others."""
        if not self.loop.team.leads:
            return Fitted()
        loop = replace(self.loop, team=ALONE)
        return self._calibrate(loop, self._batches(stores[1], shuffle=False, team=ALONE))

    @property
    def _trainable(self) -> Trainable:
        return cast(Trainable, self.hyperparameters.trainable)

    def _part(self, cut: Cut, cache: Path, images: int) -> FrozenPart:
        device = self.loop.compute.device
        dtype = compute.frozen_dtype(self.hyperparameters.precision, device)
        return FrozenPart(cut, self.hyperparameters.model, self.spec, dtype, device, images, cache)

    def _judged(self, splits: Splits) -> int:
        """How many images the taught network will be shown: those of the test, and of the comparison of precisions."""
        return len(splits.test or ()) + len(splits.validation) * self.hyperparameters.check_precision

    def _whole(self, cut: Cut, images: int) -> nn.Module:
        return frozen.whole(cut, self.spec, self.loop.compute.device, images)

    def _store(self, cut: Cut, splits: Splits, cache: Path, augment: str | None = None) -> Stores | Stopped:
        """The frozen part's outputs for training and validation."""
        chosen = self.hyperparameters
        named = augment or resolve(chosen.augment, self._trainable)
        if named == "flip" and _puts_out_maps(cut, self.spec, self.loop.compute.device):
            # The maps are mirrored as they are read: half the passes and half the disk.
            named = "none"
        views = stored_views(named, self.spec, chosen.cached_views, chosen.crop_scale)
        part = self._part(cut, cache, len(splits.train) * len(views) + len(splits.validation))
        logger.info(
            "the network up to %s is frozen and runs once, in %s", cut.name, str(part.dtype).removeprefix("torch.")
        )
        run = partial(
            frozen.store_outputs,
            part,
            self.loop,
            # Every process runs the frozen part over samples of its own.
            make_batches=partial(self.images, team=ALONE),
            seed=chosen.seed,
        )
        centre = stored_views("none", self.spec, 1)
        with _explained(cache):
            train = run(samples=splits.train, views=views)
            if train is STOPPED:
                return STOPPED
            validation = run(samples=splits.validation, views=centre)
        return STOPPED if validation is STOPPED else (train, validation)

    def _teach_best(
        self,
        model: Classifier,
        cut: Cut,
        stores: Stores,
        *,
        keeper: Checkpoints | None,
        kept: Kept | None,
        checkpoints: Path | None,
        judged: int,
    ) -> Taught:
        """Tries heads, and trains the one that the best recipe asks for as a job of its own would.

        It learns once more, on its own, so that all that watches a job sees it, and a checkpoint is one of any job: the
        price is that of one more head. After a stop amid the search there is the best head so far, as it was tried.
        """
        file = checkpoints / _SEARCH_FILE if checkpoints else None
        search, weights, stopped = self._try_heads(model, stores, file, going_on=kept is not None)
        if not search:
            return Taught(_stopped(model.head), lambda: model, {}, self.hyperparameters)
        recipe = Hyperparameters.parse(search["hyperparameters"])
        model.head = self._make_head(model, recipe)
        cut = replace(cut, rest=model.head)
        if stopped:
            model.head.load_state_dict(weights)
            best = next(trial for trial in search["trials"] if trial["trial"] == search["trial"])
            fit = FitResult((), best["best_epoch"], best["metrics"], None, clone_weights(model.head), "stop signal")
            return Taught(fit, lambda: model, {}, recipe, search)
        loop = replace(
            self.loop,
            criterion=SmoothedCrossEntropyLoss(label_smoothing=recipe.label_smoothing),
            mix=make_mixing(recipe, self.loop.classes),
        )
        lesson = replace(self, hyperparameters=recipe, loop=loop)._on(cut)
        fit = lesson._fit_by_leader(stores, keeper, kept)
        model.head.load_state_dict(fit.weights)
        network = functools.cache(partial(self._whole, cut, judged))
        fitted = lesson._calibrate_by_leader(stores)
        return Taught(fit, network, {}, recipe, search, fitted=fitted, features=stores)

    def _try_heads(
        self, model: Classifier, stores: Stores, file: Path | None, *, going_on: bool
    ) -> tuple[dict[str, Any], Mapping[str, Tensor], bool]:
        """The leader's search: what `tryout.report` tells, the best head's weights, and whether a stop came.

        Args:
            model: with an untrained head, which stays so.
            stores: of training and validation.
            file: keeps the outcome for a job that is started again, or None.
            going_on: a checkpoint was found, so that the search had ended.
        """
        chosen, team = self.hyperparameters, self.loop.team
        found: tuple[dict[str, Any], Mapping[str, Tensor], bool] = {}, {}, False
        if team.leads:
            known = _read_search(file) if file and going_on else None
            if known is not None:
                return team.share((known, {}, False))
            recipes = tryout.draw(chosen)
            logger.info("trying %d heads on the stored features, which differ in %s", len(recipes), chosen.search_over)
            alone = replace(self, loop=replace(self.loop, team=ALONE))
            tried = tryout.try_heads(
                recipes,
                lambda recipe: self._make_head(model, recipe),
                lambda recipe: replace(alone, hyperparameters=recipe)._feed(stores),
                device=self.loop.compute.device,
                classes=self.loop.classes,
                stop_requested=self.loop.stop_requested,
            )
            if tried.best is not None:
                for line in tryout.lines(tried, chosen):
                    logger.info("%s", line)
                found = tryout.report(tried, chosen), tried.weights, tried.stopped
                if file and not tried.stopped:
                    _write_search(file, found[0])
        return team.share(found)

    def _make_head(self, model: Classifier, recipe: Hyperparameters) -> nn.Sequential:
        """An untrained head for a recipe: the model's own start where it has the same shape."""
        torch.manual_seed(recipe.seed)
        spec = HeadSpec(self.loop.classes, recipe.hidden_units, recipe.dropout)
        head = Classifier(model.backbone, model.features, spec).head
        if recipe.hidden_units == self.hyperparameters.hidden_units:
            head.load_state_dict(model.head.state_dict())
        return head.to(self.loop.compute.device)

    def _learn_head(
        self, model: Classifier, cut: Cut | None, stores: Stores | None, splits: Splits, cache: Path
    ) -> tuple[FitResult, Mapping[str, Any], Stores | None]:
        """Trains the head alone, and leaves its best weights in the model.

        Its recipe are the defaults, or the best of the recipes that are tried.

        Returns:
            How it went; what was tried, see `tryout.report`, empty when nothing was; and the features that it learned
            from, unless a stop signal came first.
        """
        chosen, team = self.hyperparameters, self.loop.team
        above = backbones.cut_at_head(model)
        if cut is None or stores is None:
            found = self._store(above, splits, cache, "none")
        else:
            found = self._deepened(above, cut, stores, cache) if team.leads else stores
        if any(team.gather(found is STOPPED)) or found is STOPPED:
            return _stopped(model.head), {}, None
        recipe = Hyperparameters(
            epochs=chosen.most_head_epochs,
            batch_size=min(Hyperparameters().batch_size, chosen.batch_size),
            objective=chosen.objective,
            patience=chosen.patience or Hyperparameters().patience,
            seed=chosen.seed,
            hidden_units=chosen.hidden_units,
            dropout=chosen.dropout,
        )
        loop = replace(
            self.loop,
            observers=[Quietly(observer) for observer in self.loop.observers],
            criterion=SmoothedCrossEntropyLoss(),
            mix=unmixed,
            clip_norm=0.0,
            accumulate=1,
            # A head has no convolutions, which are what gains by less precision on a CPU.
            compute=compute.choose("auto" if self.loop.compute.device.type == "cuda" else "fp32"),
        )
        lesson = replace(self, hyperparameters=recipe, loop=loop, watch=lambda *_: None)._on(above)
        search: Mapping[str, Any] = {}
        if chosen.search_trials >= _FEWEST_TRIALS:
            trying = replace(recipe, search_trials=chosen.search_trials, search_over="+".join(chosen.searched))
            told, weights, stopped = replace(lesson, hyperparameters=trying)._try_heads(
                model, found, None, going_on=False
            )
            if not told:
                return _stopped(model.head), {}, None
            # A job is not given what its head learns by: it finds it again.
            search = {**told, "hyperparameters": tryout.given(chosen)}
            recipe = replace(recipe, **tryout.searched_values(told, trying))
            if stopped:
                model.head.load_state_dict(weights)
                best = next(trial for trial in told["trials"] if trial["trial"] == told["trial"])
                return (
                    FitResult((), best["best_epoch"], best["metrics"], None, dict(weights), "stop signal"),
                    search,
                    None,
                )
            loop = replace(
                loop,
                criterion=SmoothedCrossEntropyLoss(label_smoothing=recipe.label_smoothing),
                mix=make_mixing(recipe, loop.classes),
            )
            lesson = replace(lesson, hyperparameters=recipe, loop=loop)._on(above)
        fit = lesson._fit_by_leader(found, None, None)
        model.head.load_state_dict(fit.weights)
        if fit.best_epoch:
            logger.info(
                "the head alone, before what is below it learns: %s %.4f after %d epochs",
                chosen.objective.replace("_", " "),
                fit.metrics[chosen.objective],
                fit.best_epoch,
            )
        return fit, search, found

    def _kept_search(self, checkpoints: Path | None) -> Mapping[str, Any]:
        """What an earlier start of this job has tried before it began to fine-tune; empty when it has not."""
        if checkpoints is None or self.hyperparameters.search_trials < _FEWEST_TRIALS:
            return {}
        found = _read_search(checkpoints / _SEARCH_FILE) if self.loop.team.leads else None
        return self.loop.team.share(found or {})

    def _deepened(self, above: Cut, cut: Cut, stores: Stores, cache: Path) -> Stores | Stopped:
        """What goes into the head, computed from the stored maps instead of the images once more."""
        further = Cut(f"head by way of the {cut.name}", cast(Rest, cut.rest).backbone, above.rest)
        # From stored maps there is little left to compute: nothing to compile.
        part, whole = self._part(further, cache, 0), self._part(above, cache, 0)
        chosen, loop = self.hyperparameters, replace(self.loop, team=ALONE)
        named = resolve(chosen.augment, self._trainable)
        view, _ = stored_views(named, self.spec, chosen.cached_views, chosen.crop_scale)[0]
        found: list[FeatureStore] = []
        with _explained(cache):
            for store, name in zip(stores, (view, "centre"), strict=True):
                key = replace(
                    whole.key((), [name], chosen.seed),
                    # Of one key a store may lack images, whose files could not be read.
                    samples="\0".join((f"outputs {store.digest}", *store.unread)),
                    network=f"{part.model}, {further.name}",
                )
                deeper = frozen.deepen(part, loop, store, key, self._batches(store, shuffle=False, team=ALONE))
                if deeper is STOPPED:
                    return STOPPED
                found.append(replace(deeper, corrupt=store.corrupt, unread=store.unread))
        return found[0], found[1]

    def _on(self, cut: Cut) -> Lesson:
        return replace(self, loop=frozen.on_outputs(self.loop, cut))

    def _feed(self, stores: Stores) -> tuple[Batches, Batches]:
        """Shuffled batches that learn and ordered ones that judge."""
        return self._batches(stores[0], shuffle=True), self._batches(stores[1], shuffle=False)

    def _batches(self, store: FeatureStore, *, shuffle: bool, team: Team | None = None) -> FeatureBatches:
        flips = resolve(self.hyperparameters.augment, self._trainable) == "flip"
        return FeatureBatches(
            store,
            batch_size=self.hyperparameters.batch_size,
            seed=self.hyperparameters.seed,
            shuffle=shuffle,
            device=self.loop.compute.device,
            team=team or self.loop.team,
            mirror=shuffle and flips and len(store.outputs) == 1,
        )

    def _tell_parts(self) -> None:
        """Says where a batch goes through the network in fewer parts than the user asked for."""
        own = self.hyperparameters.batch_size // self.loop.team.size
        asked, most = self.loop.accumulate, max(1, own // 2)
        if asked > most and self.loop.team.leads and learns_statistics(self.loop.model.train()):
            logger.warning(
                "accumulate=%d means parts of one sample, from which BatchNorm cannot learn: the %d samples of a step "
                "go through in %d; with batch-statistics=keep they may in as many as there are",
                asked,
                own,
                most,
            )

    def _fit_by_leader(self, stores: Stores, keeper: Checkpoints | None, kept: Kept | None) -> FitResult:
        """For a head: a step takes less time than telling others of its gradients, so the leader takes them all."""
        team = self.loop.team
        if team.leads:
            alone = replace(self, loop=replace(self.loop, team=ALONE))
            fit = alone._fit(*alone._feed(stores), keeper, kept, None)
            team.share((fit.weights, fit.best_epoch, fit.metrics, fit.ended_by))
            return fit
        nothing = _stopped(self.loop.model)
        weights, best_epoch, metrics, ended_by = team.share((nothing.weights, 0, nothing.metrics, nothing.ended_by))
        return FitResult((), best_epoch, metrics, None, weights, ended_by)

    def _fit(
        self,
        train: Batches,
        validation: Batches,
        keeper: Checkpoints | None,
        kept: Kept | None,
        start: FitResult | None,
    ) -> FitResult:
        """Trains the loop's model, from a kept state on, or from a start that its epochs must better."""
        chosen = self.hyperparameters
        optimizer = make_optimizer(chosen, self.loop.model)
        state = FitState(
            model=self.loop.model,
            optimizer=optimizer,
            schedule=make_schedule(chosen, optimizer, steps=len(train) * chosen.epochs),
            averaging=make_averaging(chosen.ema, self.loop.model),
            scaler=self.loop.compute.make_scaler(),
            selection=Selection(
                maximise=chosen.objective.endswith("accuracy"),
                patience=chosen.patience,
                min_delta=chosen.min_delta,
                min_epochs=chosen.min_epochs,
            ),
            learnt=PassMetrics(self.loop.compute.device),
        )
        if start is not None and start.metrics:
            state.selection.best = start.metrics[chosen.objective]
            state.best_weights = clone_weights(self.loop.model)
            state.best_metrics, state.best_validation = start.metrics, start.best_validation
        if kept is not None:
            state.load_state_dict(kept, self.loop.team)
        self._tell_parts()
        self.watch(self.loop.model, self.loop.criterion, state.scaler.get_scale, self._loading(train, validation))
        collector.settle()
        return self.loop.fit(
            train, validation, state, epochs=chosen.epochs, objective=chosen.objective, keeper=keeper or NoKeeper()
        )


def _puts_out_maps(cut: Cut, spec: PreprocessSpec, device: torch.device) -> bool:
    """Whether what is frozen puts out maps [N, C, H, W]: neither features, tokens, nor maps [N, H, W, C] as Swin's.

    Those of a mirrored image are nearly its own maps mirrored. Nearly, because a convolution with stride 2 takes every
    other place from the left: behind four of them the two are up to 15 of 16 pixels apart, as if the mirrored image had
    been moved by a sixteenth of its side.
    """
    with torch.no_grad():
        shape = cut.frozen(torch.zeros(1, 3, spec.size_px, spec.size_px, device=device)).shape
    return len(shape) == 4 and shape[1] != shape[2] == shape[3]


def _read_search(file: Path) -> dict[str, Any] | None:
    """What `_write_search` wrote; None where it cannot be had, and the heads are tried again."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        logger.warning("the outcome of the search cannot be read: %s", error)
        return None
    return found


def _write_search(file: Path, search: Mapping[str, Any]) -> None:
    try:
        mapped.write_whole(file, json.dumps(search, indent=2).encode())
    except OSError as error:
        logger.error("the outcome of the search cannot be kept: %s", error)


@contextlib.contextmanager
def _explained(cache: Path) -> Iterator[None]:
    """Around all that writes stores."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"the outputs of the frozen part cannot be stored in {cache}: {error}; free some space there, name another "
            f"folder in DOGBREED_CACHE_DIR, or set cache=false"
        ) from error


def _stopped(learning: nn.Module) -> FitResult:
    """A stop signal came before anything was learnt."""
    return FitResult((), 0, {}, None, clone_weights(learning), "stop signal")
