from __future__ import annotations

import copy
import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dogbreed.insight import saveplan, tensors
from dogbreed.insight.rules.common import Need
from dogbreed.insight.rules.registry import default_rules, parse_rules
from dogbreed.insight.tensors import TensorHook

pytest.importorskip("smdebug", reason="the image has smdebug; this machine does not")


def attach(folder: Path, config: Path | None = None) -> tuple[nn.Module, nn.Module, TensorHook]:
    model, criterion = nn.Linear(4, 3), nn.CrossEntropyLoss()
    hook = tensors.attach(model, criterion, folder=folder, config=config)
    assert hook is not None
    return model, criterion, hook


def step(model: nn.Module, criterion: nn.Module) -> float:
    loss: Tensor = criterion(model(torch.randn(5, 4)), torch.tensor([0, 1, 2, 0, 1]))
    if torch.is_grad_enabled():
        loss.backward()
    return float(loss.detach())


def run(
    model: nn.Module, criterion: nn.Module, hook: TensorHook, *, epochs: int = 3
) -> tuple[list[float], list[float]]:
    """Twelve train and two validation steps an epoch, then a test pass; returns train losses and validation means."""
    train: list[float] = []
    validation = []
    for _ in range(epochs):
        hook.set_mode("train")
        for _ in range(12):
            train.append(step(model, criterion))
            hook.step()
        hook.set_mode("validation")
        with torch.no_grad():
            validation.append((step(model, criterion) + step(model, criterion)) / 2)
    hook.set_mode("test")
    with torch.no_grad():
        step(model, criterion)
    hook.close()
    return train, validation


def test_losses_are_read_back_per_step_in_training_and_per_pass_in_validation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, criterion, hook = attach(tmp_path / "tensors")
    train, validation = run(model, criterion, hook)
    losses = tensors.read_losses(hook.folder)
    assert [point.step for point in losses.train] == [0, 10, 20, 30]
    assert [point.value for point in losses.train] == pytest.approx([train[step] for step in (0, 10, 20, 30)])
    assert [point.step for point in losses.evaluation] == [12, 24, 36]
    assert [point.value for point in losses.evaluation] == pytest.approx(validation)


def test_reading_does_not_wait_for_ever_in_a_job_on_sagemaker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With TRAINING_JOB_NAME set smdebug writes no end file, and its own readers wait for one."""
    monkeypatch.setenv("TRAINING_JOB_NAME", "job-1")
    model, criterion, hook = attach(tmp_path / "tensors")
    run(model, criterion, hook)
    assert len(tensors.read_losses(hook.folder).evaluation) == 3


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tensors").mkdir()
    (tmp_path / "tensors" / "old").touch()
    _, _, hook = attach(tmp_path / "tensors")
    assert hook.folder == tmp_path / "tensors-2"
    hook.close()
    assert [entry.name for entry in (tmp_path / "tensors").iterdir()] == ["old"]


def test_the_platforms_configuration_is_honoured(tmp_path: Path) -> None:
    config = tmp_path / "debughookconfig.json"
    config.write_text(
        json.dumps(
            {
                "LocalPath": str(tmp_path / "elsewhere"),
                "HookParameters": {"train.save_interval": "4"},
                "CollectionConfigurations": [{"CollectionName": "losses"}],
            }
        )
    )
    model, criterion, hook = attach(tmp_path / "tensors", config)
    assert hook.folder == tmp_path / "elsewhere"
    run(model, criterion, hook, epochs=1)
    assert [point.step for point in tensors.read_losses(hook.folder).train] == [0, 4, 8]


def test_a_hook_that_cannot_be_made_is_a_warning_and_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tmp_path / "debughookconfig.json"
    config.write_text("{")
    hook = tensors.attach(nn.Linear(1, 1), nn.CrossEntropyLoss(), folder=tmp_path, config=config)
    assert "JSONDecodeError" in hook.failure
    assert "no tensors are saved" in caplog.text


def test_a_machine_without_smdebug_trains_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "smdebug.pytorch", None)
    hook = tensors.attach(nn.Linear(1, 1), nn.CrossEntropyLoss(), folder=tmp_path / "t", config=None)
    assert "ModuleNotFoundError" in hook.failure
    assert "no tensors are saved" in caplog.text


def test_a_folder_without_tensors_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no tensors"):
        tensors.read_losses(tmp_path)


def test_smdebugs_chatter_is_dropped_and_its_warnings_are_not(caplog: pytest.LogCaptureFixture) -> None:
    saveplan.quieten_smdebug()
    debugger = logging.getLogger("smdebug")
    assert debugger.filter(logging.makeLogRecord({"levelno": logging.INFO})) is False
    assert debugger.filter(logging.makeLogRecord({"levelno": logging.WARNING}))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Tanh(),
        nn.Linear(4, 3),
    )


ALL = tensors.wanted(
    (*default_rules(pretrained=False, gpus=0), *parse_rules("SaturatedActivation:threshold_tanh_max=0.1"))
)


def watch(
    model: nn.Module, folder: Path, *, wanted: tensors.Wanted = ALL, config: Path | None = None
) -> tuple[nn.Module, TensorHook]:
    criterion = nn.CrossEntropyLoss()
    hook = tensors.attach(model, criterion, folder=folder, config=config, wanted=wanted)
    assert hook.failure == ""
    return criterion, hook


def learn(
    model: nn.Module, criterion: nn.Module, hook: TensorHook, *, steps: int = 101, dtype: torch.dtype = torch.float32
) -> None:
    """Some train steps and a validation pass of three batches of six images."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    hook.set_mode("train")
    model.train()
    for number in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = criterion(model(torch.randn(6, 3, 8, 8)), torch.arange(6) % 3 if number else torch.arange(6) % 2)
        loss.backward()
        optimizer.step()
        hook.step()
    hook.set_mode("validation")
    model.eval()
    with torch.no_grad():
        for _ in range(3):
            criterion(model(torch.randn(6, 3, 8, 8)), torch.arange(6) % 3)
    hook.end_pass()


def test_smdebugs_readers_give_back_everything_that_the_rules_were_told(tmp_path: Path) -> None:
    model = network()
    criterion, hook = watch(model, tmp_path / "tensors")
    learn(model, criterion, hook)
    learn(model, criterion, hook, steps=20)
    hook.close()
    losses, kept, answers, _ = hook.evidence()
    read_losses, read_kept, read_answers = tensors.read(hook.folder)
    assert [point.step for point in read_losses.train] == [*range(11), *range(20, 121, 10)]
    for told, read in ((losses.train, read_losses.train), (losses.evaluation, read_losses.evaluation)):
        assert [point.step for point in told] == [point.step for point in read]
        assert [point.value for point in told] == pytest.approx([point.value for point in read])
    assert [point.step for point in losses.evaluation] == [101, 121]
    assert set(kept) == {"gradients", "weights", "relu_input", "relu_output", "tanh_input"}
    assert {collection: set(named) for collection, named in kept.items()} == {
        collection: set(named) for collection, named in read_kept.items()
    }
    for collection, named in kept.items():
        for name, readings in named.items():
            for told, read in zip(readings, read_kept[collection][name], strict=True):
                assert told.step == read.step
                assert dict(told.values) == pytest.approx(dict(read.values))
                assert (told.units is None) == (read.units is None)
                if told.units is not None:
                    assert told.units.tolist() == pytest.approx(read.units.tolist())
    assert answers.train_labels.tolist() == read_answers.train_labels.tolist()
    assert len(answers.train_labels) == 6 * 121
    assert answers.labels.tolist() == read_answers.labels.tolist() == [0, 1, 2, 0, 1, 2] * 3
    assert answers.predictions.tolist() == read_answers.predictions.tolist()
    assert (answers.evaluated, read_answers.evaluated) == (36, 36)


def test_tensors_are_saved_at_the_steps_that_rules_need_and_no_others(tmp_path: Path) -> None:
    model = network()
    criterion, hook = watch(model, tmp_path / "tensors")
    learn(model, criterion, hook)
    _, kept, _, _ = hook.evidence()
    steps = {collection: {one.step for one in next(iter(named.values()))} for collection, named in kept.items()}
    assert steps["gradients"] == {*range(10), 100}
    assert steps["weights"] == {0, 100}
    assert steps["relu_input"] == steps["relu_output"] == set(range(10))
    assert set(kept["weights"]) == {
        "Sequential_0.weight",
        "Sequential_1.weight",
        "Sequential_3.weight",
        "Sequential_8.weight",
    }


def test_a_hook_of_a_job_that_goes_on_counts_from_where_it_was(tmp_path: Path) -> None:
    model = network()
    criterion, hook = watch(model, tmp_path / "tensors")
    hook.go_on(195)
    learn(model, criterion, hook, steps=20)
    losses, kept, _, _ = hook.evidence()
    assert [point.step for point in losses.train] == [200, 210]
    assert [point.step for point in losses.evaluation] == [215]
    assert {reading.step for readings in kept["gradients"].values() for reading in readings} == {200}
    hook.close()


def test_the_input_of_an_in_place_relu_is_taken_before_it_is_overwritten(tmp_path: Path) -> None:
    model = network()
    criterion, hook = watch(model, tmp_path / "tensors")
    learn(model, criterion, hook, steps=1)
    _, kept, _, _ = hook.evidence()
    assert kept["relu_input"]["2_input_0"][0].values["min"] < 0
    assert kept["relu_output"]["2_output_0"][0].values["min"] == 0
    assert model[2].inplace


def test_statistics_are_those_of_the_tensor(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[1.0, -2.0], [0.0, 5.0]])
    criterion, hook = watch(model, tmp_path / "tensors")
    hook.set_mode("train")
    criterion(model(torch.ones(1, 2)), torch.tensor([0])).backward()
    hook.end_pass()
    (reading,) = hook.evidence()[1]["weights"]["Linear_weight"]
    assert dict(reading.values) == pytest.approx(
        {"min": -2.0, "max": 5.0, "mean": 1.0, "variance": 6.5, "abs_mean": 2.0, "zeros": 0.25}
    )


def test_bfloat16_activations_crash_nothing(tmp_path: Path) -> None:
    model = network()
    criterion, hook = watch(model, tmp_path / "tensors")
    learn(model, criterion, hook, dtype=torch.bfloat16)
    hook.close()
    assert hook.failure == ""
    _, kept, _ = tensors.read(hook.folder)
    assert kept["relu_output"]["2_output_0"][0].values["max"] > 0


def test_raw_tensors_that_the_platform_asks_for_are_saved_whole(tmp_path: Path) -> None:
    config = tmp_path / "debughookconfig.json"
    config.write_text(
        json.dumps(
            {
                "HookParameters": {"save_interval": "5"},
                "CollectionConfigurations": [
                    {"CollectionName": "biases"},
                    {"CollectionName": "mine", "CollectionParameters": {"include_regex": "2_input.*"}},
                ],
            }
        )
    )
    model = network()
    criterion, hook = watch(model, tmp_path / "tensors", config=config)
    learn(model, criterion, hook, steps=6, dtype=torch.bfloat16)
    hook.close()
    from smdebug.pytorch import modes
    from smdebug.trials import create_trial

    trial = create_trial(str(hook.folder))
    assert trial.tensor("Sequential_8.bias").value(5, mode=modes.TRAIN).shape == (3,)
    assert trial.tensor("2_input_0").value(5, mode=modes.TRAIN).shape == (6, 8, 6, 6)
    assert trial.tensor("2_input_0").value(5, mode=modes.TRAIN).min() < 0


def test_a_copy_of_the_model_is_not_watched_but_its_losses_are(tmp_path: Path) -> None:
    model = network()
    criterion, hook = watch(model, tmp_path / "tensors")
    learn(model, criterion, hook, steps=2)
    average = copy.deepcopy(model)
    hook.set_mode("validation")
    with torch.no_grad():
        for _ in range(4):
            criterion(average(torch.randn(6, 3, 8, 8)), torch.arange(6) % 3)
    hook.end_pass()
    assert len(hook.evidence()[0].evaluation) == 2
    assert hook.evidence()[2].evaluated == 18 + 24
    torch.save(model, tmp_path / "model.pt")
    torch.load(tmp_path / "model.pt", weights_only=False)(torch.randn(2, 3, 8, 8))
    assert hook.failure == ""
    hook.close()
    from smdebug.pytorch import modes
    from smdebug.trials import create_trial

    loss = create_trial(str(hook.folder)).tensor("CrossEntropyLoss_output_0")
    assert loss.steps(mode=modes.EVAL) == list(range(7)), "each loss of the copy is a step of its own"


def test_a_compiled_model_says_that_it_has_no_activations(tmp_path: Path) -> None:
    model = torch.compile(network(), backend="eager")
    criterion, hook = watch(model, tmp_path / "tensors")
    learn(model, criterion, hook, steps=3)
    _, kept, _, missing = hook.evidence()
    assert set(kept) == {"gradients", "weights"}
    assert "compiled" in missing["relu_output"]
    assert "gradient/OptimizedModule_8.weight" in kept["gradients"]


def test_a_head_without_a_relu_says_so(tmp_path: Path) -> None:
    _, hook = watch(nn.Sequential(nn.Dropout(), nn.Linear(4, 3)), tmp_path / "tensors")
    assert "has no ReLU module; with cache=true" in hook.evidence()[3]["relu_output"]


def test_a_hook_that_fails_in_a_step_is_taken_off_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    criterion, hook = watch(model, tmp_path / "tensors")
    learn(model, criterion, hook, steps=2)
    monkeypatch.setattr(tensors, "summarise", lambda value: 1 / 0)
    learn(model, criterion, hook, steps=101)
    assert "ZeroDivisionError" in hook.failure
    assert "ZeroDivisionError" in hook.evidence()[3]["gradients"]
    assert caplog.text.count("no more tensors are saved") == 1
    assert not model._forward_pre_hooks
    hook.close()


def test_scaled_gradients_are_told_unscaled(tmp_path: Path) -> None:
    model, criterion = nn.Linear(2, 2), nn.CrossEntropyLoss()
    hook = tensors.attach(
        model, criterion, folder=tmp_path / "t", config=None, wanted=ALL, gradient_scale=lambda: 1024.0
    )
    hook.set_mode("train")
    (criterion(model(torch.ones(1, 2)), torch.tensor([0])) * 1024.0).backward()
    hook.end_pass()
    (reading,) = hook.evidence()[1]["gradients"]["gradient/Linear_weight"]
    assert reading.values["abs_mean"] == pytest.approx(float(model.weight.grad.abs().mean()) / 1024)


def test_soft_targets_are_no_labels(tmp_path: Path) -> None:
    model = nn.Linear(4, 3)
    criterion, hook = watch(model, tmp_path / "tensors")
    hook.set_mode("train")
    criterion(model(torch.ones(2, 4)), torch.full((2, 3), 1 / 3)).backward()
    hook.end_pass()
    assert len(hook.evidence()[2].train_labels) == 0


def test_each_setting_of_a_rule_decides_what_is_saved() -> None:
    only_losses = tensors.wanted(parse_rules("Overfit"))
    assert only_losses.needs == {Need.LOSSES}
    assert tensors.wanted(parse_rules("WeightUpdateRatio:num_steps=7")).weights_every == 7
    assert ALL.tanh == (-9.4999, 0.1)


def test_files_hold_ever_fewer_of_many_evaluation_passes_and_rules_are_told_of_all(tmp_path: Path) -> None:
    model, criterion, hook = attach(tmp_path / "tensors")
    _, validation = run(model, criterion, hook, epochs=45)
    told = hook.evidence()[0].evaluation
    assert [point.step for point in told] == [12 * epoch for epoch in range(1, 46)]
    assert [point.value for point in told] == pytest.approx(validation)
    read = tensors.read_losses(hook.folder).evaluation
    filed = [*range(20), *range(20, 40, 2), 40, 44]
    assert [point.step for point in read] == [12 * (epoch + 1) for epoch in filed]
    assert [point.value for point in read] == pytest.approx([validation[epoch] for epoch in filed])


def test_all_evaluation_passes_are_filed_where_the_platform_asks_for_losses(tmp_path: Path) -> None:
    config = tmp_path / "debughookconfig.json"
    config.write_text(
        json.dumps(
            {
                "CollectionConfigurations": [
                    {"CollectionName": "losses", "CollectionParameters": {"eval.save_interval": "1"}}
                ]
            }
        )
    )
    model, criterion, hook = attach(tmp_path / "tensors", config)
    run(model, criterion, hook, epochs=25)
    assert len(tensors.read_losses(hook.folder).evaluation) == 25


def test_modules_tell_only_of_steps_at_which_tensors_are_saved(tmp_path: Path) -> None:
    model = network()
    criterion, hook = watch(model, tmp_path / "tensors")
    relu = model[2]
    hook.set_mode("train")
    heard = []
    for _ in range(102):
        heard.append((len(model._forward_pre_hooks), len(relu._forward_hooks)))
        criterion(model(torch.randn(6, 3, 8, 8)), torch.arange(6) % 3).backward()
        hook.step()
    assert [number for number, counts in enumerate(heard) if counts == (1, 1)] == [*range(10), 100]
    assert set(heard) == {(0, 0), (1, 1)}
    hook.set_mode("validation")
    assert not model._forward_pre_hooks
    hook.close()
    assert not model._forward_pre_hooks
    assert not criterion._forward_hooks


def test_the_criterion_tells_of_every_evaluation_and_of_training_while_labels_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "_KEPT_LABELS", 60)
    model = network()
    criterion, hook = watch(model, tmp_path / "tensors")

    def epoch() -> list[int]:
        heard = []
        for phase in ("train", "validation"):
            hook.set_mode(phase)
            for _ in range(12):
                heard.append(len(criterion._forward_hooks))
                criterion(model(torch.randn(6, 3, 8, 8)), torch.arange(6) % 3)
                hook.step()
        return heard

    assert epoch() == [1] * 24
    assert [number for number, hooks in enumerate(epoch()) if not hooks] == [*range(8), *range(9, 12)]
    hook.close()
    assert len(hook.evidence()[2].train_labels) == 60
    assert [point.step for point in hook.evidence()[0].train] == [*range(11), 20]


def test_a_step_in_parts_is_one_step_and_the_loss_is_that_of_its_first_part(tmp_path: Path) -> None:
    model = network()
    criterion, hook = watch(model, tmp_path / "tensors")
    hook.set_mode("train")
    firsts = []
    for number in range(12):
        for part in range(3):
            loss = criterion(model(torch.randn(6, 3, 8, 8)), torch.arange(6) % 3)
            loss.backward()
            if not part and number <= 10:
                firsts.append(loss.item())
        hook.step()
    hook.close()
    losses, kept, answers, _ = hook.evidence()
    assert [point.step for point in losses.train] == [*range(11)]
    assert [point.value for point in losses.train] == pytest.approx(firsts)
    assert [one.step for one in kept["gradients"]["gradient/Sequential_8.weight"]] == [*range(10)]
    assert [one.step for one in kept["relu_output"]["2_output_0"]] == [*range(10)]
    assert len(answers.train_labels) == 12 * 3 * 6
    assert [point.step for point in tensors.read_losses(hook.folder).train] == [*range(11)]


def test_gradients_of_a_step_in_parts_are_those_that_the_optimizer_steps_with(tmp_path: Path) -> None:
    images, labels = torch.randn(24, 3, 8, 8), torch.arange(24) % 3
    told: list[dict[str, float]] = []
    for parts in (1, 8):
        model = network().eval()  # BatchNorm sees the parts
        wanted = tensors.wanted(parse_rules("VanishingGradient"))
        criterion, hook = watch(model, tmp_path / str(parts), wanted=wanted)
        hook.set_mode("train")
        for part, truths in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            (criterion(model(part), truths) * len(part) / 24).backward()
        stepped_with = float(model[8].weight.grad.abs().mean())
        hook.step()
        for _ in range(101):  # of which one's gradients are saved, and the next one's not
            criterion(model(images), labels).backward()
            hook.step()
        hook.close()
        _, kept, _, _ = hook.evidence()
        for readings in (kept, tensors.read(hook.folder)[1]):
            first, last = readings["gradients"]["gradient/Sequential_8.weight"]
            assert first.values["abs_mean"] == pytest.approx(stepped_with)
            assert (first.step, last.step) == (0, 100)
        told.append({name: one[0].values["abs_mean"] for name, one in kept["gradients"].items()})
    assert told[1] == pytest.approx(told[0], rel=1e-3)


def test_a_batch_without_images_is_a_step_of_which_nothing_is_saved(tmp_path: Path) -> None:
    model = network()
    criterion, hook = watch(model, tmp_path / "tensors")
    hook.set_mode("train")
    for number in range(31):
        if number != 20:
            criterion(model(torch.randn(6, 3, 8, 8)), torch.arange(6) % 3).backward()
        hook.step()
    hook.end_pass()
    assert hook.failure == ""
    assert [point.step for point in hook.evidence()[0].train] == [*range(11), 30]
