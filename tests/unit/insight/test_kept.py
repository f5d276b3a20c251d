"""What is kept in memory for the rules: within bounds, and seen whole."""

import threading

import numpy as np

from dogbreed.insight.evidence import Point, Reading
from dogbreed.insight.kept import Kept
from dogbreed.insight.passes import Labels


def test_only_the_first_and_the_newest_readings_are_kept():
    kept = Kept()
    for step in range(1000):
        kept.add_reading("weights", "head", Reading(step, {}))
    _, tensors, _ = kept.evidence()
    assert [one.step for one in tensors["weights"]["head"]] == [*range(20), *range(800, 1000)]


def test_an_evaluation_is_the_mean_of_its_steps_and_the_newest_losses_are_kept():
    kept = Kept()
    for step in range(20_005):
        kept.add_train_loss(step, 1.0)
    kept.add_evaluation(24, [1.0, 2.0, 6.0])
    losses, _, _ = kept.evidence()
    assert losses.evaluation == (Point(24, 3.0),)
    assert (len(losses.train), losses.train[0].step) == (20_000, 5)


def test_train_labels_add_up_and_of_answers_the_last_evaluation_counts():
    kept = Kept()
    nothing = np.empty(0, dtype=np.int64)
    for classes in ([0, 1], [2]):
        kept.add_labels(Labels(train=np.array(classes), true=nothing, predicted=nothing))
        kept.add_labels(Labels(train=nothing, true=np.array([0, 1, 2]), predicted=np.array([0, 1, classes[0]])))
    _, _, answers = kept.evidence()
    assert answers.train_labels.tolist() == [0, 1, 2]
    assert (answers.labels.tolist(), answers.predictions.tolist()) == ([0, 1, 2], [0, 1, 2])
    assert answers.evaluated == 6


def test_what_is_added_together_is_seen_together():
    kept = Kept()
    seen = []
    reader = threading.Thread(target=lambda: seen.append(kept.evidence()))
    with kept.together():
        kept.add_train_loss(0, 1.0)
        reader.start()
        reader.join(timeout=0.1)
        assert seen == []
        kept.add_evaluation(1, [2.0])
    reader.join()
    assert (len(seen[0][0].train), len(seen[0][0].evaluation)) == (1, 1)
