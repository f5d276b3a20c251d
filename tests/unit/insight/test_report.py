import json
import math
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from dogbreed.insight import __main__ as command
from dogbreed.insight import report
from dogbreed.insight.photos import WrongPhoto
from dogbreed.insight.profile import Profile
from dogbreed.insight.report import EpochRecord, JobRecord, RecordError
from dogbreed.insight.verdicts import Status, Verdict

STARTED = datetime(2026, 3, 1, 23, 50, tzinfo=UTC)


def make_verdict(rule, status, recommendation=""):
    return Verdict(
        rule=rule,
        status=status,
        evidence=f"{rule} saw it.",
        recommendation=recommendation,
        parameters={"delta": 0.01, "mode": "", "only_nan": False, "num_steps": 10},
        violations=1,
        datapoints=3,
    )


def make_record(**changes):
    epochs = tuple(
        EpochRecord(
            epoch,
            {
                "train_loss": 1 / epoch,
                "train_accuracy": 1 - 0.5 / epoch,
                "validation_loss": 1.2 / epoch,
                "validation_accuracy": 1 - 0.6 / epoch,
            },
            0.001 / epoch,
            2.5,
        )
        for epoch in (1, 2, 3)
    )
    record = JobRecord(
        job_name="job-1",
        backbone="resnet18",
        trainable="head",
        started=STARTED,
        ended=STARTED + timedelta(seconds=700),
        epochs=epochs,
        best_epoch=2,
        metrics={**epochs[1].metrics, "test_accuracy": 0.75},
        labels=("Beagle", "Borzoi", "Boxer"),
        hyperparameters={"lr": 0.001, "pretrained": True},
        facts={"train_images": 30},
        versions={"torch": "2.11.0"},
        confusion=[[8, 2, 0], [1, 3, 0], [0, 0, 0]],
        confusion_channel="test",
        verdicts=(
            make_verdict("Quiet", Status.NO_ISSUES_FOUND),
            make_verdict("Short", Status.NOT_ENOUGH_DATA, "Train for longer."),
            make_verdict("Loud", Status.ISSUES_FOUND, "Lower lr."),
        ),
        corrupt_images=("train/a.jpg: truncated",),
    )
    return replace(record, **changes)


class Page(HTMLParser):
    """Collects what a reader sees and checks that every tag is closed."""

    VOID = frozenset({"meta", "br", "wbr", "link", "img", "hr"})

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.headings, self.words = [], [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append((self.open[-1], data))

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page():
    return Page(report.render(make_record()))


def test_the_page_opens_with_the_result_and_the_verdicts_worst_first(page):
    assert [text for _, text in page.headings[:5]] == ["75.0 % test accuracy", "Verdicts", "Loud", "Short", "Quiet"]
    assert "resnet18 on 3 classes" in page.text
    assert "2026-03-01 23:50 to 2026-03-02 00:01 UTC" in page.text


def test_a_verdict_has_its_status_in_words_with_evidence_and_advice(page):
    assert "Issues found Loud Loud saw it. What to do: Lower lr." in page.text
    assert "Not enough data Short Short saw it. Note: Train for longer." in page.text
    assert "delta=0.01; mode=none; only_nan=false; num_steps=10" in page.text


def test_headings_go_down_one_level_at_a_time(page):
    levels = [int(tag[1]) for tag, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_page_needs_nothing_but_itself(page):
    html = report.render(make_record())
    assert not re.search(r"https?://|url\(|@import", html)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe")]


def test_every_picture_says_what_it_shows(page):
    pictures = [one for one in page.all("svg") if one.get("role") == "img"]
    assert len(pictures) == 5
    assert pictures[0]["aria-label"] == "Loss per epoch; train from 1 to 0.3333; validation from 1.2 to 0.4"
    assert all(one.get("aria-hidden") == "true" for one in page.all("svg") if one not in pictures)


def test_what_scrolls_can_be_reached_by_keyboard(page):
    scrolling = [one for one in page.all("div") if "scroll" in one.get("class", "").split()]
    assert len(scrolling) == 4
    assert all(one["tabindex"] == "0" and one["aria-label"] for one in scrolling)


def test_pairs_and_recall_put_the_worst_first_and_classes_without_images_last(page):
    assert "Beagle Borzoi 2 of 10 Borzoi Beagle 1 of 4" in page.text
    assert re.search(r"Borzoi 3 of 4 75\.0 %.*Beagle 8 of 10 80\.0 %.*Boxer 0 of 0 n/a", page.text)
    assert "Beagle taken for Borzoi: 2 of 10" in page.text


def test_more_than_forty_classes_have_pairs_and_no_matrix():
    labels = tuple(f"class{index}" for index in range(41))
    confusion = [[1 if true == predicted else 0 for predicted in labels] for true in labels]
    confusion[7][8] = 3
    html = report.render(make_record(labels=labels, confusion=confusion))
    assert "Confusion matrix" not in html
    assert "class7" in html
    assert "No matrix is drawn for more than 40 classes" in html


def test_names_from_outside_are_escaped():
    evil = "<script>alert(1)</script>"
    record = make_record(
        labels=(evil, "Borzoi", "Boxer"), job_name=evil, corrupt_images=(evil,), hyperparameters={evil: evil}
    )
    assert "<script" not in report.render(record)


def test_a_job_that_ended_before_its_first_epoch_has_a_page():
    record = make_record(epochs=(), best_epoch=0, metrics={}, confusion=None, verdicts=(), corrupt_images=())
    page = Page(report.render(record))
    assert ("h1", "No epoch was finished") in page.headings
    assert "No rule was evaluated" in page.text
    assert [
        text for _, text in page.headings if text in ("How it learned", "Where it is wrong", "Skipped images")
    ] == []


def test_a_loss_that_is_no_number_leaves_a_gap():
    epochs = tuple(EpochRecord(epoch, {"train_loss": math.nan if epoch == 2 else 1.0}, 0.1, 1.0) for epoch in (1, 2, 3))
    html = report.render(make_record(epochs=epochs))
    assert not re.search(r"\bnan\b", html, re.IGNORECASE)
    assert "epoch 1: train 1<" in html
    assert "epoch 2: train" not in html


def test_a_page_of_many_classes_epochs_and_corrupt_images_stays_small():
    labels = tuple(f"{index:03}.A_rather_long_name_of_a_class" for index in range(1000))
    confusion = [[int(abs(true - predicted) < 3) for predicted in range(1000)] for true in range(1000)]
    epoch = make_record().epochs[0]
    record = make_record(
        labels=labels,
        confusion=confusion,
        epochs=tuple(replace(epoch, epoch=number) for number in range(1, 201)),
        corrupt_images=tuple(f"train/{index}.jpg: truncated" for index in range(5000)),
    )
    html = report.render(record)
    assert len(html.encode()) < 1_000_000
    assert "the first 100 are listed" in html


def test_write_leaves_page_record_and_one_file_per_verdict(tmp_path):
    page = report.write(make_record(), tmp_path / "insight")
    assert page == tmp_path / "insight" / "report.html"
    assert page.read_text(encoding="utf-8") == report.render(make_record())
    assert sorted(file.name for file in (page.parent / "rules").iterdir()) == ["Loud.json", "Quiet.json", "Short.json"]
    loud = json.loads((page.parent / "rules" / "Loud.json").read_text())
    assert (loud["RuleTriggered"], loud["Status"], loud["Violations"]) == (1, "IssuesFound", 1)


def test_a_record_survives_json():
    record = make_record()
    assert JobRecord.from_json(record.to_json()).to_json() == record.to_json()
    assert report.render(JobRecord.from_json(record.to_json())) == report.render(record)


def test_numbers_that_json_cannot_hold_become_null_and_nan():
    record = make_record(metrics={"test_loss": math.inf}, facts={"odd": math.nan, "path": STARTED.tzinfo})
    text = record.to_json()
    json.loads(text, parse_constant=pytest.fail)
    assert math.isnan(JobRecord.from_json(text).metrics["test_loss"])


def test_a_confusion_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="confusion is not 3 x 3"):
        make_record(confusion=[[1, 2], [3, 4]])


def test_the_summary_puts_issues_first_and_ends_with_the_page(tmp_path):
    assert report.summary(make_record(), tmp_path / "report.html").splitlines() == [
        "Loud: IssuesFound. Loud saw it.",
        "  Lower lr.",
        "Short: NotEnoughData. Short saw it.",
        "Quiet: NoIssuesFound. Quiet saw it.",
        f"report: {tmp_path / 'report.html'}",
    ]


def test_the_summary_says_when_no_rule_was_evaluated():
    assert report.summary(make_record(verdicts=())).startswith("no rule was evaluated")


def test_the_command_rebuilds_the_page_of_an_old_job(tmp_path, capsys):
    page = report.write(make_record(), tmp_path)
    page.unlink()
    assert command.main([str(tmp_path)]) == 0
    assert page.is_file()
    assert capsys.readouterr().out == report.summary(make_record(), page) + "\n"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "holds no record.json"),
        ("{", "is not JSON"),
        ("[]", "schema version None"),
        ('{"schema_version": 99}', "schema version 99, but this version of dogbreed reads 3"),
        ('{"schema_version": 1}', "is damaged"),
        ('{"schema_version": 1, "started": "yesterday"}', "is damaged"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong_with_a_folder(tmp_path, capsys, content, complaint):
    if content is not None:
        (tmp_path / "record.json").write_text(content)
    assert command.main([str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert complaint in said
    assert str(tmp_path) in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--help"], ["a", "--help"]])
def test_the_command_shows_its_usage(arguments, capsys):
    assert command.main(arguments) == 2
    assert "usage: python -m dogbreed.insight FOLDER" in capsys.readouterr().err


def test_read_names_a_file_that_is_no_text(tmp_path):
    (tmp_path / "record.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match=r"record\.json"):
        report.read(tmp_path)


FULL = {
    "profile": Profile(
        seconds={"data": 61.0, "forward": 39.0},
        steps={
            "train": {
                "edges_ms": [1.0, 2.0, 3.0],
                "counts": [5, 3],
                "outliers": 1,
                "steps": 9,
                "mean_ms": 2.0,
                "p50_ms": 2.0,
                "p95_ms": 3.0,
                "max_ms": 9.0,
            }
        },
        series={"CPU": [(0.0, 50.0), (1.0, 60.0)], "memory": [(0.0, 10.0), (1.0, 10.0)]},
        usage={"CPU": {"unit": "percent", "max": 60.0, "p99": 60.0, "p95": 60.0, "p50": 55.0, "min": 50.0}},
        operators=[{"name": "aten::mm", "calls": 3, "cpu_s": 0.25, "device_s": 0.0}],
    ),
    "wrong": (WrongPhoto("Beagle/<x>.jpg", "Beagle", "Boxer", 0.99, "AAAA"),),
}


def test_the_page_tells_of_time_machine_operators_and_wrong_photos():
    page = report.render(make_record(**FULL))
    for told in (
        "Where the time went: data 61.0 %, forward 39.0 %",
        "Histogram of train step times: 9 steps; median 2 ms",
        "CPU and memory over time, mean memory 10.0 %, CPU 55.0 %",
        "aten::mm",
        "data:image/jpeg;base64,AAAA",
        "Beagle/<wbr>&lt;x&gt;.jpg",
        "1 min 01 s",
    ):
        assert told in page
    assert page.count("<svg") == report.render(make_record()).count("<svg") + 3


def test_without_a_profile_the_page_has_no_empty_sections():
    page = report.render(make_record())
    for heading in ("Where the time went", "The machine", "Most confidently wrong"):
        assert heading not in page


def test_a_record_with_everything_survives_its_file(tmp_path):
    record = make_record(**FULL)
    report.write(record, tmp_path)
    read = report.read(tmp_path)
    assert read.wrong == record.wrong
    assert dict(read.profile.seconds) == dict(record.profile.seconds)
    assert report.render(read) == report.render(record)


def test_a_record_of_the_version_before_is_read(tmp_path):
    record = make_record()
    document = json.loads(record.to_json())
    document["schema_version"] = 1
    for name in ("profile", "wrong"):
        del document[name]
    for verdict in document["verdicts"]:
        del verdict["details"]
    (tmp_path / "record.json").write_text(json.dumps(document))
    assert report.render(report.read(tmp_path)) == report.render(record)


@pytest.mark.parametrize(
    ("workers", "seconds", "told"),
    [
        (2, 61.0, "2 threads loaded the images; decoding and augmenting took 1 min 01 s, all threads together."),
        (1, 0.0, "1 thread loaded the images."),
        (0, 0.0, "The training process loaded its images itself."),
        (None, 0.0, "What learned read stored outputs: no image was decoded in training."),
    ],
)
def test_the_page_says_who_loaded_the_images(workers, seconds, told):
    found = Profile(seconds={"data": 1.0}, workers=workers, worker_seconds=seconds)
    page = report.render(make_record(profile=found))
    assert told in " ".join(page.split())


def test_work_beyond_eight_kinds_is_other_work():
    seconds = {f"kind{number}": 10.0 - number for number in range(9)} | {"other": 1.0}
    page = report.render(make_record(profile=Profile(seconds=seconds)))
    assert "other 10.9 %" in page
    assert "kind8" not in page
    assert 'class="slice k8"' in page


def test_the_markdown_holds_verdicts_time_pairs_and_settings(tmp_path):
    report.write(make_record(**FULL), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# 75.0 % test accuracy\n")
    assert "| Loud | Issues found | Loud saw it. | Lower lr. |" in text
    assert text.index("| Loud |") < text.index("| Quiet |")
    assert "| data | 61.0 % | 1 min 01 s |" in text
    assert "| Beagle | Borzoi | 2 of 10 |" in text
    assert "| lr | 0.001 |" in text


def test_rules_without_an_issue_are_folded_when_there_are_many():
    many = tuple(make_verdict(f"Rule{number}", Status.NO_ISSUES_FOUND) for number in range(5))
    folded = report.render(make_record(verdicts=(make_verdict("Loud", Status.ISSUES_FOUND), *many)))
    assert '<details class="group">' in folded
    assert "5 found no issue: Rule0, Rule1" in folded
    assert '<details class="group" open>' in report.render(make_record())


def test_the_page_of_an_interrupted_job_is_made_from_its_record(tmp_path, capsys):
    report.write_record(make_record(), tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]
    assert command.main([str(tmp_path)]) == 0
    assert (tmp_path / "report.html").is_file()
