"""Rules on jobs that really train: for every rule on a network one job that must trigger it and one that must not.

The jobs are seconds long and draw their own data. What the hook saves is read back through smdebug as well, and each
rule is put through its `invoke_rule`, so that rules written for SageMaker Debugger find what they expect.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dogbreed import backbones
from dogbreed.insight import report, tensors
from dogbreed.insight.evidence import Evidence
from dogbreed.insight.report import EpochRecord, JobRecord
from dogbreed.insight.rules.registry import evaluate, parse_rules
from dogbreed.insight.timeline import Timeline
from dogbreed.insight.verdicts import Status

pytest.importorskip("smdebug", reason="the image has smdebug; this machine does not")

Batch = tuple[Tensor, Tensor]


def drawn(
    count: int, *, classes: int = 3, shuffled: bool = False, shares: tuple[int, ...] = (), seed: int = 1
) -> Batch:
    """Images [N, 3, 16, 16] whose class is which third is bright; shuffled labels have nothing to do with them."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([float(share) for share in shares] or [1.0] * classes)
    labels = torch.multinomial(weights, count, replacement=True, generator=generator)
    images = torch.randn(count, 3, 16, 16, generator=generator) * 0.3
    for number, label in enumerate(labels.tolist()):
        images[number, label % 3] += 1.0
    if shuffled:
        labels = labels[torch.randperm(count, generator=generator)]
    return images, labels


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return backbones.build("tiny", backbones.HeadSpec(3, 0, 0.0), image_size_px=16)


def small(activation: Callable[[], nn.Module] = nn.ReLU, *, scale: float = 1.0) -> nn.Sequential:
    """Two hidden layers with an activation between; `scale` multiplies the initial weights."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(768, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 3)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def dead(model: nn.Sequential) -> nn.Sequential:
    """Biases so negative that no ReLU is ever active."""
    with torch.no_grad():
        model[1].bias -= 100.0
    return model


def zeroed(model: nn.Sequential) -> nn.Sequential:
    """The second layer frozen at zero."""
    with torch.no_grad():
        model[3].weight.zero_()
    model[3].requires_grad_(False)
    return model


def train(
    folder: Path,
    rules: str,
    model: nn.Module,
    *,
    lr: float = 0.05,
    epochs: int = 4,
    steps: int = 30,
    data: Batch | None = None,
    validation: Batch | None = None,
    data_kept_s: float = 0.0,
) -> tuple[Evidence, Path]:
    """Trains with the hook on, in batches of 16; returns what the rules are told, and smdebug's folder."""
    chosen = parse_rules(rules)
    criterion = nn.CrossEntropyLoss()
    hook = tensors.attach(model, criterion, folder=folder, config=None, wanted=tensors.wanted(chosen))
    clock = [0.0]
    timeline = Timeline(lambda: clock[0])
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr)
    images, labels = data or drawn(480)
    tests, truths = validation or drawn(96, seed=2)
    for _ in range(epochs):
        hook.set_mode("train")
        timeline.start_pass("train")
        model.train()
        for number in range(steps):
            clock[0] += data_kept_s
            timeline.mark("data")
            batch = slice(number * 16 % len(images), number * 16 % len(images) + 16)
            optimizer.zero_grad()
            criterion(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            clock[0] += 0.1
            timeline.mark("forward")
            timeline.step()
            hook.step()
        hook.end_pass()
        timeline.end_pass()
        hook.set_mode("validation")
        model.eval()
        with torch.no_grad():
            for start in range(0, len(tests), 16):
                criterion(model(tests[start : start + 16]), truths[start : start + 16])
        hook.end_pass()
    hook.close()
    assert hook.failure == ""
    losses, kept, answers, missing = hook.evidence()
    evidence = Evidence(losses=losses, tensors=kept, answers=answers, times=timeline.times(), missing=missing)
    return evidence, hook.folder


WELL: dict[str, object] = {}
# rules, a job that must trigger the first of them, and one that must not: models and settings of `train`.
JOBS = {
    "VanishingGradient": (
        "VanishingGradient",
        (lambda: small(nn.Sigmoid, scale=1e-4), {"epochs": 1}),
        (small, WELL),
    ),
    "ExplodingTensor": ("ExplodingTensor", (small, {"lr": 1e6, "epochs": 2}), (small, WELL)),
    "PoorWeightInitialization": (
        "PoorWeightInitialization",
        (lambda: small(scale=50.0), {"epochs": 1}),
        (small, {"epochs": 1}),
    ),
    "DeadRelu": ("DeadRelu", (lambda: dead(small()), {"epochs": 1}), (small, {"epochs": 1})),
    "SaturatedActivation": (
        "SaturatedActivation",
        (lambda: small(nn.Tanh, scale=300.0), {"epochs": 1}),
        (lambda: small(nn.Tanh), {"epochs": 1}),
    ),
    "WeightUpdateRatio": ("WeightUpdateRatio:num_steps=10", (small, {"lr": 1e3, "epochs": 1}), (small, WELL)),
    "AllZero": (
        "AllZero:collection_names=weights",
        (lambda: zeroed(small()), {"epochs": 1}),
        (small, {"epochs": 1}),
    ),
    "UnchangedTensor": (
        "UnchangedTensor:collection_names=weights,WeightUpdateRatio:num_steps=10",
        (lambda: zeroed(small()), WELL),
        (small, WELL),
    ),
    "TensorVariance": (
        "TensorVariance:collection_names=weights;max_threshold=1",
        (lambda: small(scale=50.0), {"epochs": 1}),
        (small, {"epochs": 1}),
    ),
    "LossNotDecreasing": (
        "LossNotDecreasing",
        (tiny, {"lr": 1e-9}),
        (tiny, {"epochs": 2, "lr": 0.02, "steps": 20}),
    ),
    "Overfit": (
        "Overfit",
        (small, {"epochs": 8, "steps": 12, "lr": 0.1, "data": drawn(64, shuffled=True)}),
        (tiny, {"epochs": 3}),
    ),
    "Overtraining": (
        "Overtraining:patience_validation=3;patience_train=3",
        (small, {"epochs": 12, "lr": 0.1}),
        (small, {"epochs": 5, "lr": 0.003}),
    ),
    "ClassImbalance": (
        "ClassImbalance:samples=300",
        (small, {"epochs": 1, "data": drawn(480, shares=(96, 3, 1))}),
        (small, {"epochs": 1}),
    ),
    "Confusion": ("Confusion", (small, {"lr": 1e-9, "epochs": 1}), (tiny, WELL)),
}


@pytest.mark.parametrize("name", sorted(JOBS))
def test_a_job_that_must_trigger_a_rule_does_and_one_that_must_not_does_not(tmp_path: Path, name: str) -> None:
    """In memory, and by smdebug's `invoke_rule` on what its reader finds of the tensors that the rule declares."""
    from tests.contract.declared_rule import fires

    rules, *jobs = JOBS[name]
    for job, must, status in zip(jobs, (True, False), (Status.ISSUES_FOUND, Status.NO_ISSUES_FOUND), strict=True):
        model, how = job
        evidence, folder = train(tmp_path / str(must), rules, model(), **how)  # type: ignore[arg-type]
        rule = parse_rules(rules)[0]
        verdict = evaluate([rule], evidence)[0]
        assert verdict.status is status, verdict.evidence
        fired, invoked = fires(folder, rule)
        assert fired is must
        read = rule.judge(invoked.evidence())
        assert (read.status, read.violations, read.datapoints) == (status, verdict.violations, verdict.datapoints)


def test_a_starved_loop_is_told_how_much_it_waited(tmp_path: Path) -> None:
    starved, _ = train(tmp_path / "starved", "OverallFrameworkMetrics", small(), epochs=1, data_kept_s=0.3)
    (verdict,) = evaluate(parse_rules("OverallFrameworkMetrics"), starved)
    assert "Waiting for data took 75 % of the training loop" in verdict.recommendation
    fed, _ = train(tmp_path / "fed", "OverallFrameworkMetrics", small(), epochs=1, data_kept_s=0.01)
    assert evaluate(parse_rules("OverallFrameworkMetrics"), fed)[0].recommendation == ""


def test_smdebugs_own_rules_find_what_they_expect(tmp_path: Path) -> None:
    from smdebug.exceptions import NoMoreData, RuleEvaluationConditionMet
    from smdebug.rules.rule import Rule
    from smdebug.rules.rule_invoker import invoke_rule
    from smdebug.trials import create_trial

    class Vanishing(Rule):  # type: ignore[misc]
        """As AWS's page describes it, on smdebug's interface."""

        def __init__(self, trial: object, collection: str, statistic: str, absolute: bool, limit: float) -> None:
            super().__init__(trial, "")
            self.wanted = collection, statistic, absolute, limit

        def invoke_at_step(self, step: int) -> bool:
            collection, statistic, absolute, limit = self.wanted
            for name in self.base_trial.tensor_names(collection=collection, step=step):
                if not name.startswith("insight"):
                    value = self.base_trial.tensor(name).reduction_value(step, statistic, abs=absolute)
                    if value < limit:
                        return True
            return False

    def fires(folder: Path, *settings: object) -> bool:
        trial = create_trial(str(folder))
        try:
            invoke_rule(
                Vanishing(trial, *settings),  # type: ignore[arg-type]
                end_step=max(trial.steps()) + 1,
                raise_eval_cond=True,
            )
        except RuleEvaluationConditionMet:
            return True
        except NoMoreData:
            return False
        return False

    rules = "VanishingGradient,WeightUpdateRatio"
    _, sick = train(tmp_path / "sick", rules, small(nn.Sigmoid, scale=1e-4), epochs=1)
    _, well = train(tmp_path / "well", rules, small(), epochs=1)
    assert fires(sick, "gradients", "mean", True, 1e-7)
    assert not fires(well, "gradients", "mean", True, 1e-7)
    assert fires(well, "weights", "variance", False, 1e9), "every collection that was asked for is there"


def job(name: str, lr: float, accuracy: float) -> JobRecord:
    started = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
    return JobRecord(
        job_name=name,
        backbone="tiny",
        trainable="all",
        started=started,
        ended=started + timedelta(seconds=30),
        epochs=(EpochRecord(1, {"validation_accuracy": accuracy}, lr, 30.0),),
        best_epoch=1,
        metrics={"validation_accuracy": accuracy},
        labels=("a", "b"),
        hyperparameters={"lr": lr, "epochs": 1},
        facts={},
        versions={},
        confusion=None,
        confusion_channel="validation",
        verdicts=(),
        corrupt_images=(),
    )


def run(*folders: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dogbreed.insight", *map(str, folders)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=100)


def test_the_command_compares_jobs_and_prints_the_tables(tmp_path: Path) -> None:
    for name, lr, accuracy in (("slow", 0.001, 0.7), ("fast", 0.01, 0.9)):
        report.write(job(name, lr, accuracy), tmp_path / name)
    done = run(tmp_path / "slow", tmp_path / "fast", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| validation accuracy | 70.0 % | **90.0 %** |" in done.stdout
    assert "| lr | 0.001 | 0.01 |" in done.stdout
    assert "epochs" not in done.stdout.split("## Hyperparameters that differ")[1]
    assert (tmp_path / "compare.html").read_text().count("<svg") >= 1
    assert (tmp_path / "compare.md").read_text() in done.stdout


def test_the_command_says_which_folder_holds_no_job(tmp_path: Path) -> None:
    report.write(job("slow", 0.001, 0.7), tmp_path / "slow")
    done = run(tmp_path / "slow", tmp_path / "nothing", cwd=tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path / 'nothing'} holds no record.json" in done.stderr
    assert not (tmp_path / "compare.html").exists()
