import math
import random
from dataclasses import replace

import pytest

from dogbreed.insight.evidence import Evidence, Losses, Point
from dogbreed.insight.rules.losses import LossNotDecreasing, Overfit, Overtraining
from dogbreed.insight.rules.tensors import ExplodingTensor
from dogbreed.insight.verdicts import Status


def series(values, every=1, start=0):
    return tuple(Point(start + every * position, value) for position, value in enumerate(values))


def train(*values, every=10):
    return Losses(train=series(values, every), evaluation=())


def evaluated(*values, every=10):
    return Losses(train=(), evaluation=series(values, every))


def noisy(values, noise=0.08, seed=0):
    """Batches that vary in proportion to their loss."""
    draw = random.Random(seed)
    return train(*(value * math.exp(draw.gauss(0, noise)) for value in values))


def epochs(train_values, evaluation_values, steps=10):
    """One saved train loss at the start of each epoch of `steps` steps, one evaluation at its end."""
    return Losses(train=series(train_values, steps), evaluation=series(evaluation_values, steps, start=steps))


def fired_at(rule, values, every):
    points = series(values, every)
    return [new.step for old, new in rule.comparisons(points) if rule.breaks(old.value, new.value)]


# AWS's page: saved every 3 steps, num_steps 10, step 21 is compared with step 9, and the next check is at 33.
def test_loss_is_compared_at_the_steps_of_the_aws_example():
    points = series([1.0] * 13, every=3)[3:]
    pairs = LossNotDecreasing(num_steps=10).comparisons(points)
    assert [(old.step, new.step) for old, new in pairs] == [(9, 21), (21, 33)]


# The tests of the first-party rule in 2019 (awslabs/sagemaker-debugger, parent of bb14a442).
def test_loss_that_is_back_where_it_was_fires_once_as_in_2019():
    assert fired_at(LossNotDecreasing(), [0.3, 0.33, 0.31, 0.30, 0.28], every=4) == [12]


def test_the_threshold_on_a_rise_fires_where_the_single_one_of_2019_did():
    rule = LossNotDecreasing(diff_percent=0.0, increase_threshold_percent=20)
    assert fired_at(rule, [0.3, 0.33, 0.31, 0.30, 0.28, 0.2, 0.42], every=4) == [24]


def test_diff_percent_is_a_minimum_fall_in_the_reading_of_today():
    rule = LossNotDecreasing(diff_percent=20)
    assert fired_at(rule, [0.3, 0.33, 0.31, 0.30, 0.28, 0.2, 0.42], every=4) == [12, 24]


@pytest.mark.parametrize(
    ("old", "new", "breaks"),
    [
        (1.0, 0.9, False),
        (1.0, 0.9995, True),
        (1.0, 1.0, True),
        (1.0, 1.04, False),
        (1.0, 1.06, True),
        (0.0, 0.0, False),
        (0.0, 0.1, True),
    ],
)
def test_loss_breaks_by_a_small_fall_or_a_large_rise(old, new, breaks):
    assert LossNotDecreasing().breaks(old, new) is breaks


def test_loss_not_decreasing_names_step_value_and_threshold():
    verdict = LossNotDecreasing().evaluate(evaluated(2.0, 1.0, 1.2, 1.1))
    assert verdict.status is Status.ISSUES_FOUND
    assert (verdict.violations, verdict.datapoints) == (1, 3)
    assert "rose by 20 %, from 1 at step 10 to 1.2 at step 20" in verdict.evidence
    assert "a rise of 5 % is tolerated" in verdict.evidence
    assert verdict.recommendation


def test_loss_not_decreasing_prefers_evaluations_to_noisy_batches():
    losses = Losses(
        train=series([2.0, 3.0, 1.0, 4.0], every=10), evaluation=series([1.0, 0.8, 0.7], every=10, start=10)
    )
    verdict = LossNotDecreasing().evaluate(losses)
    assert verdict.status is Status.NO_ISSUES_FOUND
    assert "evaluation loss went from 1 at step 10 to 0.7 at step 30" in verdict.evidence


# Saved by a fine-tuning of four epochs whose train losses were 3.39, 2.53, 1.76 and 1.23.
HEALTHY = (4.153, 3.433, 3.413, 3.181, 3.234, 2.585, 2.817, 2.57, 2.45, 1.495, 2.807, 1.078, 1.53, 1.44, 1.828, 1.428)


@pytest.mark.parametrize("seen", range(len(HEALTHY) + 1))
@pytest.mark.parametrize("mode", ["", "TRAIN"])
def test_single_batches_of_a_healthy_job_never_fire(mode, seen):
    rule = LossNotDecreasing(mode=mode)
    for ongoing in (True, False):
        assert rule.evaluate(train(*HEALTHY[:seen]), ongoing=ongoing).status is not Status.ISSUES_FOUND
    if seen >= 5:
        assert rule.evaluate(train(*HEALTHY[:seen])).status is Status.NO_ISSUES_FOUND


def test_while_evaluations_may_come_train_losses_are_not_judged_in_their_place():
    losses = Losses(train=series([4.0, 9000.0, 8000.0, 9000.0], every=10), evaluation=series([8000.0], start=40))
    verdict = LossNotDecreasing().judge(Evidence(losses=losses, ongoing=True))
    assert verdict.status is Status.NOT_ENOUGH_DATA
    assert "1 evaluation and 4 train losses; two finite evaluations that are at least num_steps=10" in verdict.evidence
    assert "train losses over" not in verdict.evidence
    assert LossNotDecreasing(mode="EVAL").judge(Evidence(losses=losses)).status is Status.NOT_ENOUGH_DATA


@pytest.mark.parametrize(
    ("losses", "told", "advice"),
    [
        (train(4.153, 6695.0, 11000.0, 9000.0, 7512.0), "rose by 1.81e+05 %, from 4.153 to 7512", "Lower lr"),
        (noisy([3.4] * 300), "the means of the first and the last 100 of 300 train losses", "Raise lr"),
        (train(*[3.4] * 9), "by 0 %", "Raise lr"),
        (noisy([3.4 * 1.02**step for step in range(60)]), "a rise of 5 % is tolerated", "Lower lr"),
    ],
    ids=["diverged at once", "flat and noisy", "the same", "rising"],
)
def test_train_losses_that_do_not_fall_fire_when_no_more_can_come(losses, told, advice):
    verdict = LossNotDecreasing().evaluate(losses)
    assert verdict.status is Status.ISSUES_FOUND
    assert told in verdict.evidence
    assert advice in verdict.recommendation
    assert LossNotDecreasing(mode="TRAIN").evaluate(losses, ongoing=True) == replace(
        verdict, parameters={**verdict.parameters, "mode": "TRAIN"}
    )


def test_a_change_that_noise_hides_is_not_enough_data():
    verdict = LossNotDecreasing(mode="TRAIN").evaluate(noisy([3.4] * 12))
    assert verdict.status is Status.NOT_ENOUGH_DATA
    assert "too much to say whether it falls" in verdict.evidence


def test_a_slow_fall_is_seen_through_the_noise_of_many_batches():
    slow = [3.4 * 0.999**step for step in range(300)]
    fired = [LossNotDecreasing(mode="TRAIN").evaluate(noisy(slow, seed=seed)).status for seed in range(50)]
    assert fired == [Status.NO_ISSUES_FOUND] * 50


def test_train_losses_that_have_come_down_to_nothing_are_no_issue():
    assert LossNotDecreasing(mode="TRAIN").evaluate(train(*[0.0] * 9)).status is Status.NO_ISSUES_FOUND


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ((2.0, 2.0, 1.5, 1.0, 0.5), "Raise lr"),
        ((2.0, 3.0, 1.5, 1.0, 0.5), "Lower lr"),
        ((2.0, 1.5, 1.0, 0.5, 0.5), "fewer epochs"),
    ],
)
def test_loss_not_decreasing_advises_by_when_and_how_it_failed(values, advice):
    assert advice in LossNotDecreasing().evaluate(evaluated(*values)).recommendation


def test_overfit_fires_after_more_than_patience_evaluations_in_a_row():
    verdict = Overfit().evaluate(epochs([1.0, 0.8, 0.6, 0.5], [1.0, 0.9, 0.7, 0.7]))
    assert verdict.status is Status.ISSUES_FOUND
    # Over the limit at steps 20, 30 and 40; one is tolerated.
    assert (verdict.violations, verdict.datapoints) == (2, 4)
    assert "At step 30 the validation loss was 0.7" in verdict.evidence
    assert "train loss before it 0.6" in verdict.evidence
    assert "limit of 10 %" in verdict.evidence


@pytest.mark.parametrize(
    "evaluation",
    [
        pytest.param([1.0, 0.87, 0.65, 0.54], id="below the limit"),
        pytest.param([1.2, 0.8, 0.7, 0.5], id="never twice in a row"),
        pytest.param([0.5, 0.5, 0.5, 0.4], id="below the train loss"),
    ],
)
def test_overfit_stays_silent(evaluation):
    verdict = Overfit().evaluate(epochs([1.0, 0.8, 0.6, 0.5], evaluation))
    assert (verdict.status, verdict.violations) == (Status.NO_ISSUES_FOUND, 0)


def test_overfit_leaves_out_evaluations_before_start_step():
    losses = epochs([1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 1.0, 1.0])
    assert Overfit().evaluate(losses).status is Status.ISSUES_FOUND
    assert Overfit(start_step=30).evaluate(losses).status is Status.NO_ISSUES_FOUND


def test_overfit_averages_the_train_losses_since_the_last_evaluation():
    losses = Losses(
        train=(Point(0, 9.0), Point(10, 1.0), Point(20, 3.0), Point(30, 2.0)),
        evaluation=(Point(10, 9.0), Point(30, 2.1), Point(40, 2.1)),
    )
    verdict = Overfit(ratio_threshold=0.04, patience=0).evaluate(losses)
    assert (verdict.violations, verdict.datapoints) == (2, 3)
    assert "mean train loss before it 2, a difference of +5 %" in verdict.evidence


def test_overfit_leaves_out_an_evaluation_without_train_losses_before_it():
    losses = Losses(train=series([1.0, 1.0], every=10), evaluation=series([1.0, 5.0, 1.0, 5.0], every=5, start=5))
    assert Overfit(patience=0).evaluate(losses).datapoints == 2


def overtrained(extra, delta=0.0):
    """Improves for 3 epochs, then not by more than `delta` for `extra` ones."""
    values = [1.0, 0.8, 0.6] + [0.6 - delta] * extra
    return epochs(values, values)


def test_overtraining_fires_when_both_losses_stalled():
    verdict = Overtraining().evaluate(overtrained(10))
    assert (verdict.status, verdict.violations, verdict.datapoints) == (Status.ISSUES_FOUND, 1, 13)
    assert (
        "At step 130 the validation loss had not improved on 0.6 of step 30 by 0.01 for 10 evaluations"
        in verdict.evidence
    )


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param(overtrained(9), id="not for long enough"),
        pytest.param(
            epochs([1.0 - 0.05 * e for e in range(15)], [1.0, 0.8, 0.6] + [0.6] * 12), id="train still improves"
        ),
        pytest.param(
            epochs([1.0, 0.8, 0.6] + [0.6] * 12, [1.0 - 0.05 * e for e in range(15)]), id="validation still improves"
        ),
    ],
)
def test_overtraining_stays_silent(losses):
    verdict = Overtraining().evaluate(losses)
    assert (verdict.status, verdict.violations) == (Status.NO_ISSUES_FOUND, 0)


@pytest.mark.parametrize(("delta", "fires"), [(0.009, True), (0.011, False)])
def test_overtraining_counts_an_improvement_from_delta_on(delta, fires):
    losses = overtrained(10, delta)
    assert (Overtraining().evaluate(losses).status is Status.ISSUES_FOUND) is fires


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_exploding_tensor_names_the_first_loss_that_is_no_number(value):
    losses = Losses(train=series([1.0, 1.0, 2.0, math.nan], every=10), evaluation=(Point(15, value),))
    verdict = ExplodingTensor().judge(Evidence(losses=losses))
    assert (verdict.status, verdict.violations, verdict.datapoints) == (Status.ISSUES_FOUND, 2, 5)
    assert f"The evaluation loss was {value} at step 15" in verdict.evidence
    assert "5 saved losses and 0 tensors" in verdict.evidence


def test_exploding_tensor_may_overlook_infinity():
    losses = train(1.0, math.inf)
    assert ExplodingTensor(only_nan=True).judge(Evidence(losses=losses)).status is Status.NO_ISSUES_FOUND
    assert ExplodingTensor().judge(Evidence(losses=losses)).status is Status.ISSUES_FOUND


@pytest.mark.parametrize(
    ("rule", "losses", "missing"),
    [
        (LossNotDecreasing(), train(1.0, 0.9, every=5), "0 evaluations and 2 train losses"),
        (LossNotDecreasing(mode="TRAIN"), train(1.0), "1 train loss; three finite train losses over at least 10"),
        (LossNotDecreasing(mode="EVAL"), evaluated(1.0), "1 evaluation; two finite evaluations that are at least"),
        (LossNotDecreasing(), train(1.0, math.nan, 1.0), "three finite train losses over at least 10 steps"),
        (LossNotDecreasing(num_steps=50), train(1.0, 0.5, 0.1), "over at least 50 steps"),
        (Overfit(), epochs([1.0], [1.0]), "1 evaluation and 1 train loss"),
        (Overfit(), train(1.0, 0.9, 0.8), "at least 2 evaluations"),
        (Overtraining(), epochs([1.0] * 6, [1.0] * 10), "10 evaluations and 6 train losses; at least 11 and 6"),
        (Overtraining(), epochs([1.0] * 5, [1.0] * 11), "11 evaluations and 5 train losses; at least 11 and 6"),
        (ExplodingTensor(), Losses((), ()), "no losses"),
    ],
)
def test_a_rule_without_enough_data_says_what_is_missing(rule, losses, missing):
    verdict = rule.judge(Evidence(losses=losses))
    assert verdict.status is Status.NOT_ENOUGH_DATA
    assert missing in verdict.evidence
    assert verdict.violations == 0


def judged(losses):
    return [
        rule.judge(Evidence(losses=losses))
        for rule in (ExplodingTensor(), LossNotDecreasing(), Overfit(), Overtraining())
    ]


def test_every_rule_is_evaluated_with_the_defaults_of_aws():
    verdicts = {verdict.rule: verdict for verdict in judged(epochs([1.0, 0.8], [1.0, 0.8]))}
    assert {name: dict(verdict.parameters) for name, verdict in verdicts.items()} == {
        "ExplodingTensor": {"collection_names": None, "tensor_regex": None, "only_nan": False},
        "LossNotDecreasing": {"num_steps": 10, "diff_percent": 0.1, "increase_threshold_percent": 5.0, "mode": ""},
        "Overfit": {"start_step": 0, "patience": 1, "ratio_threshold": 0.1},
        "Overtraining": {"patience_train": 5, "patience_validation": 10, "delta": 0.01},
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_no_rule_raises_on_odd_losses(value):
    for losses in (Losses((), ()), epochs([value] * 12, [value] * 12), epochs([value, 1.0] * 6, [1.0, value] * 6)):
        assert len(judged(losses)) == 4
