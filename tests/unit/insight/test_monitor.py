import threading

from tests.unit.insight.evidence_made import answers, losses, reading, tensors

from dogbreed.insight.evidence import Evidence
from dogbreed.insight.monitor import Monitor
from dogbreed.insight.rules.registry import parse_rules
from dogbreed.insight.verdicts import Status

GOOD = losses([2.0, 1.5, 1.0], [2.0, 1.5, 1.0], every=10)
BAD = losses([2.0, 1.0, 0.5, 0.2], [2.0, 2.1, 2.2, 2.3], every=10)


def watched(evidence, text, **options):
    """A monitor over a list whose last item is what is known, and the changes that it told."""
    told = []
    monitor = Monitor(
        parse_rules(text),
        lambda: evidence[-1],
        on_change=lambda one: told.append((one.rule, one.status)),
        **options,
    )
    return monitor, told


def test_each_change_of_status_is_told_once_and_want_of_data_at_first_is_none():
    evidence = [Evidence()]
    monitor, told = watched(evidence, "Overfit")
    monitor.evaluate()
    assert told == []
    evidence.append(Evidence(losses=GOOD))
    monitor.evaluate()
    monitor.evaluate()
    evidence.append(Evidence(losses=BAD))
    monitor.evaluate()
    monitor.evaluate()
    assert told == [("Overfit", Status.NO_ISSUES_FOUND), ("Overfit", Status.ISSUES_FOUND)]


def test_a_rule_that_fires_asks_for_a_stop_only_when_it_is_named():
    evidence = [Evidence(losses=BAD)]
    monitor, _ = watched(evidence, "Overfit,ExplodingTensor", stop_on=("ExplodingTensor",))
    monitor.evaluate()
    assert monitor.stopped_by == ""
    monitor, _ = watched(evidence, "Overfit,ExplodingTensor", stop_on=("Overfit",))
    monitor.evaluate()
    assert monitor.stopped_by == "Overfit"


def test_what_a_tensor_rule_saw_is_remembered_when_the_readings_are_gone():
    evidence = [tensors("gradients", a=[reading(0, abs_mean=0.0)])]
    monitor, _ = watched(evidence, "VanishingGradient")
    monitor.evaluate()
    evidence.append(tensors("gradients", a=[reading(100)]))
    (verdict,) = monitor.finish()
    assert verdict.status is Status.ISSUES_FOUND
    assert "at step 0" in verdict.evidence
    assert "Later: The smallest" in verdict.evidence


def test_an_untrained_models_confusion_is_forgotten_when_it_has_learnt():
    evidence = [answers(labels=[0, 1] * 10, predictions=[1, 0] * 10)]
    monitor, _ = watched(evidence, "Confusion")
    monitor.evaluate()
    evidence.append(answers(labels=[0, 1] * 10, predictions=[0, 1] * 10))
    assert monitor.finish()[0].status is Status.NO_ISSUES_FOUND


def test_what_train_losses_showed_is_forgotten_when_evaluations_are_judged():
    evidence = [Evidence(losses=losses([4.0] + [9000.0] * 6, every=10))]
    monitor, told = watched(evidence, "LossNotDecreasing")
    monitor.evaluate()
    evidence.append(Evidence(losses=GOOD))
    assert monitor.finish()[0].status is Status.NO_ISSUES_FOUND
    assert told == [("LossNotDecreasing", Status.ISSUES_FOUND), ("LossNotDecreasing", Status.NO_ISSUES_FOUND)]


def test_what_evaluations_showed_is_remembered():
    evidence = [Evidence(losses=losses([2.0, 1.0, 0.5], [1.0, 2.0], every=10))]
    monitor, _ = watched(evidence, "LossNotDecreasing")
    monitor.evaluate()
    evidence.append(Evidence(losses=GOOD))
    (verdict,) = monitor.finish()
    assert verdict.status is Status.ISSUES_FOUND
    assert "rose by 100 %, from 1 at step 10 to 2 at step 20" in verdict.evidence


def test_the_thread_evaluates_by_itself_and_ends_when_told():
    looked = threading.Event()

    def gather():
        looked.set()
        return Evidence(losses=BAD)

    monitor = Monitor(parse_rules("Overfit"), gather, stop_on=("Overfit",), interval_s=0.001)
    monitor.start()
    assert looked.wait(timeout=30)
    assert monitor.finish()[0].status is Status.ISSUES_FOUND
    assert monitor.stopped_by == "Overfit"
    assert not monitor._thread.is_alive()


def test_a_fault_while_gathering_ends_the_watching_and_not_the_job(caplog):
    failed = threading.Event()

    def gather():
        failed.set()
        raise RuntimeError("no evidence")

    monitor = Monitor(parse_rules("Overfit"), gather, interval_s=0.001)
    monitor.start()
    assert failed.wait(timeout=30)
    monitor._thread.join(timeout=30)
    assert not monitor._thread.is_alive()
    assert "not evaluated any more" in caplog.text
