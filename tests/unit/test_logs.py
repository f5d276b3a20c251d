"""Metric lines are read back by the regexes that SageMaker is given, and logging is set up once."""

import io
import json
import logging
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dogbreed import logs
from dogbreed.insight.rules.registry import RULES


@pytest.fixture
def untouched_root():
    """Gives the root logger back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_an_epochs_line_looks_as_documented():
    line = logs.metric_line({"train_loss": 0.4121, "validation_accuracy": 0.875}, epoch=3)
    assert line == "epoch=3; train_loss=0.4121; validation_accuracy=0.875;"
    assert logs.metric_line({"test_accuracy": 1.0}) == "test_accuracy=1;"


@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, 1.0, 0.875, 1e-7, 5e-324, 1.7976931348623157e308, 1e16, 123456.0, 1234567.0, -2.5, 1 / 3, 100.0],
)
def test_awkward_numbers_are_read_back(value):
    line = "2026-01-01 10:00:00,000 INFO dogbreed: " + logs.metric_line({"train_loss": value}, epoch=12)
    assert logs.read_metrics(line) == {"train_loss": pytest.approx(value, rel=1e-5)}


@given(st.dictionaries(st.sampled_from(logs.METRIC_NAMES), st.floats(allow_nan=False, allow_infinity=False)))
def test_any_metrics_are_read_back(metrics):
    found = logs.read_metrics(logs.metric_line(metrics, epoch=1))
    # A number within 1e-6 of the largest double may be rounded up to infinity.
    assert {name: min(value, 1.7e308) for name, value in found.items()} == {
        name: pytest.approx(min(value, 1.7e308), rel=1e-5) for name, value in metrics.items()
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_no_metric(value):
    assert logs.read_metrics(logs.metric_line({"train_loss": value, "test_loss": 0.5})) == {"test_loss": 0.5}


@pytest.mark.parametrize(
    "line", ["", "my_train_loss=0.5;", "train_loss = 0.5;", "train_loss=0.5 or so", "TRAIN_LOSS=1;"]
)
def test_lines_that_only_look_alike_are_no_metrics(line):
    assert logs.read_metrics(line) == {}


def test_a_metric_without_a_regex_is_refused():
    with pytest.raises(ValueError, match=r"metrics without a regex: \['speed'\]"):
        logs.metric_line({"speed": 1.0})


def test_a_rules_metric_is_found_by_its_own_regex_alone():
    line = f"INFO dogbreed.insight.watch: {logs.rule_line('Overfit', fired=True)} IssuesFound. At step 3 loss=2;"
    found = {name: re.search(regex, line) for name, regex in logs.METRIC_REGEXES.items()}
    assert {name: match.group(1) for name, match in found.items() if match} == {"rule_Overfit": "1"}
    assert logs.rule_line("DeadRelu", fired=False) == "rule_DeadRelu=0;"
    assert logs.read_metrics(line) == {}, "it is no metric of an epoch"


def test_a_rule_without_a_regex_is_refused():
    with pytest.raises(ValueError, match="a rule without a regex: Overfitting"):
        logs.rule_line("Overfitting", fired=True)


def test_every_rule_has_a_metric():
    assert set(logs.RULE_NAMES) == set(RULES)


def test_metric_definitions_are_within_the_limits_of_the_api():
    # CreateTrainingJob, AlgorithmSpecification.MetricDefinitions: 40 of them, Name <= 255, Regex <= 500 characters.
    assert set(logs.METRIC_REGEXES) == {*logs.METRIC_NAMES, *(f"rule_{name}" for name in logs.RULE_NAMES)}
    assert 1 <= len(logs.METRIC_REGEXES) <= 40
    for name, regex in logs.METRIC_REGEXES.items():
        assert len(name) <= 255
        assert len(regex) <= 500
        assert re.compile(regex).groups == 1


def test_configure_writes_one_line_per_event_however_often_it_is_called(untouched_root):
    stream = io.StringIO()
    for _ in range(2):
        logs.configure("info", stream)
    logging.getLogger("dogbreed.test").info("%d images", 3)
    logging.getLogger("dogbreed.test").debug("too fine")
    assert re.fullmatch(r"\S+ \S+ INFO dogbreed\.test: 3 images\n", stream.getvalue())


def test_pillow_stays_quiet_while_a_job_is_debugged(untouched_root):
    stream = io.StringIO()
    logs.configure("DEBUG", stream)
    logging.getLogger("PIL.PngImagePlugin").debug("STREAM b'IHDR' 16 13")
    logging.getLogger("dogbreed.test").debug("seen")
    assert "IHDR" not in stream.getvalue()
    assert "seen" in stream.getvalue()


def test_configure_writes_to_standard_output_by_default(untouched_root, capsys):
    logs.configure()
    logging.getLogger("dogbreed.test").warning("here")
    printed = capsys.readouterr()
    assert printed.out.endswith("WARNING dogbreed.test: here\n")
    assert printed.err == ""


def test_json_lines_carry_the_fields_of_a_record_and_its_exception(untouched_root):
    stream = io.StringIO()
    logs.configure("INFO", stream, as_json=True)
    logger = logging.getLogger("dogbreed.test")
    logger.info("%d images\nhere", 3, extra=logs.fields(request_id="abc", images=3))
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("it failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "INFO",
        "logger": "dogbreed.test",
        "message": "3 images\nhere",
        "request_id": "abc",
        "images": 3,
    }
    assert second["message"] == "it failed"
    assert "ValueError: broken" in second["exception"]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_document_is_a_line_of_its_own_in_either_format(untouched_root, as_json):
    stream = io.StringIO()
    logs.configure("INFO", stream, as_json=as_json)
    logging.getLogger("dogbreed.test").info("metrics", extra=logs.document({"_aws": {"Timestamp": 1}}))
    assert stream.getvalue() == '{"_aws": {"Timestamp": 1}}\n'
