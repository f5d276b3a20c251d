"""What a search may cost: the formula against a simulated tuner, and what the command says and refuses."""

import heapq
import json
import random
import re
import shlex
from pathlib import Path

import pytest
from tests.launch.conftest import REPOSITORY

from scripts.launcher.errors import SettingError
from scripts.launcher.search import estimate
from scripts.launcher.search.estimate import Search, Work

WORK = Work(images=5000, image_s=0.02, epoch_s=0.001)
SEARCH = Search(
    trials=20, parallel=4, epochs=10, networks=1, instances=1, start_s=240, warm_start_s=30, keep_s=600, in_one_job=True
)  # fmt: skip


def change(search=SEARCH, **values):
    return Search(**{name: values.get(name, getattr(search, name)) for name in Search.__slots__})


def simulate(search, work, *, warm, epochs, networks):
    """Plays the tuner: a trial begins where an instance is free first. Returns the end and the billed seconds."""
    free = [(0.0, slot) for slot in range(search.parallel)]
    heapq.heapify(free)
    seen = [set() for _ in free]
    used, billed = set(), 0.0
    for epoch_count, network in zip(epochs, networks, strict=True):
        begin, slot = heapq.heappop(free)
        start = search.warm_start_s if warm and slot in used else search.start_s
        frozen = 0.0 if warm and network in seen[slot] else work.images * work.image_s
        seconds = start + frozen + work.images * work.epoch_s * epoch_count
        used.add(slot)
        seen[slot].add(network)
        billed += seconds * search.instances
        heapq.heappush(free, (begin + seconds, slot))
    end = max(time for time, slot in free if slot in used)
    if warm:
        billed += len(used) * search.keep_s * search.instances
    return end, billed


def ways(search, work=WORK):
    return {one.way: one for one in estimate.estimates(search, work)}


@pytest.mark.parametrize("trials", [1, 3, 4, 5, 20, 97])
@pytest.mark.parametrize("parallel", [1, 2, 4, 10])
@pytest.mark.parametrize("instances", [1, 3])
def test_for_equal_trials_the_formula_is_what_the_simulated_tuner_does(trials, parallel, instances):
    search = change(trials=trials, parallel=parallel, instances=instances)
    for way, warm in (("separate jobs", False), ("warm pools", True)):
        end, billed = simulate(search, WORK, warm=warm, epochs=[10] * trials, networks=[0] * trials)
        assert ways(search)[way].wall_s == pytest.approx(end)
        assert ways(search)[way].billed_s == pytest.approx(billed)


@pytest.mark.parametrize(("warm", "way"), [(False, "separate jobs"), (True, "warm pools")])
def test_for_hyperband_it_is_within_a_fifth(warm, way):
    """Trials of many lengths: what is billed agrees within 5%, the end within 20%, over 20 orders of the trials."""
    least, most = 2, 27
    lengths = bracket(least, most)
    search = change(trials=len(lengths), epochs=estimate.hyperband_epochs(least, most))
    ends, bills = [], []
    for seed in range(20):
        order = random.Random(seed).sample(lengths, len(lengths))
        end, billed = simulate(search, WORK, warm=warm, epochs=order, networks=[0] * len(order))
        ends.append(end)
        bills.append(billed)
    assert ways(search)[way].billed_s == pytest.approx(sum(bills) / 20, rel=0.05)
    assert ways(search)[way].wall_s == pytest.approx(sum(ends) / 20, rel=0.2)


def bracket(least, most, factor=3):
    """Epochs of every trial of Hyperband's brackets, halved one by one."""
    rungs = 0
    while least * factor ** (rungs + 1) <= most:
        rungs += 1
    lengths = []
    for bracket_rungs in range(rungs, -1, -1):
        count = -(-(rungs + 1) * factor**bracket_rungs // (bracket_rungs + 1))
        left = [0.0] * count
        for rung in range(bracket_rungs + 1):
            goes_on = count // factor**rung
            for trial in range(goes_on):
                left[trial] = most / factor ** (bracket_rungs - rung)
        lengths += left
    return lengths


def test_hyperband_trains_less_than_half_of_what_its_trials_might():
    lengths = bracket(2, 27)
    assert estimate.hyperband_epochs(2, 27) == pytest.approx(sum(lengths) / len(lengths))
    assert estimate.hyperband_epochs(2, 27) < 27 / 2
    assert estimate.hyperband_epochs(5, 5) == 5


def test_several_networks_are_computed_once_per_instance_within_a_tenth():
    search = change(trials=60, networks=3)
    ends, bills = [], []
    for seed in range(20):
        draw = random.Random(seed)
        networks = [draw.randrange(3) for _ in range(60)]
        end, billed = simulate(search, WORK, warm=True, epochs=[10] * 60, networks=networks)
        ends.append(end)
        bills.append(billed)
    assert ways(search)["warm pools"].billed_s == pytest.approx(sum(bills) / 20, rel=0.1)
    assert ways(search)["warm pools"].wall_s == pytest.approx(sum(ends) / 20, rel=0.1)


def test_one_job_pays_once():
    found = ways(SEARCH)
    assert found["inside one job"].billed_s == 240 + 5000 * 0.02 + 21 * 5000 * 0.001 * 10
    assert found["separate jobs"].billed_s == 20 * (240 + 100 + 50)
    assert "inside one job" not in ways(change(in_one_job=False))


RECORD = {
    "started": "2026-11-21T12:00:00+00:00",
    "ended": "2026-11-21T12:02:00+00:00",
    "epochs": [{"seconds": 1.0}, {"seconds": 3.0}],
    "facts": {"train_images": 700, "validation_images": 200, "test_images": 100},
}


@pytest.fixture
def files(tmp_path):
    prices, record = tmp_path / "prices.toml", tmp_path / "record.json"
    prices.write_text('currency = "EUR"\n[hour]\n"ml.g4dn.xlarge" = 2.0\n')
    record.write_text(json.dumps(RECORD))
    return ("--estimate", "--prices", str(prices), "--record", str(record))


def test_a_record_says_what_an_image_costs(files):
    work = estimate.measured(Path(files[-1]))
    assert work == Work(images=1000, image_s=pytest.approx(0.116), epoch_s=pytest.approx(0.002))


def test_the_command_says_hours_cost_and_all_that_it_assumes(launch, files):
    ended = launch("tune", *files, "--images", "5000", "--search", "lr", "--hp", "epochs=10", "--trials", "4")
    assert ended.code == 0, ended.err
    header, separate, warm, one = ended.out.splitlines()
    assert header.split("  ")[0] == "WAY"
    # 240 s, 5000 images of 116 ms, 10 epochs of 10 s
    assert separate.split() == ["separate", "jobs", "0.51", "1.02", "2.04", "EUR", "1.0", "x"]
    assert warm.startswith("warm pools")
    assert one.split()[:3] == ["inside", "one", "job"]
    for said in (
        "assumed: 4 trials, 2 at a time, of 10 epochs each: as many as they may; what early stopping saves is not",
        "assumed: 5000 images, 116 ms each for what runs once in a job and 2 ms for an epoch, as in ",
        "assumed: a job starts in 4 min, on a warm instance in 30 s",
        "assumed: 1 x ml.g4dn.xlarge at 2 EUR an hour, from ",
    ):
        assert said in ended.err
    assert launch.slept == []


def test_the_guides_command_is_right(launch, files, drawn_data):
    text = (REPOSITORY / "docs" / "tuning.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^scripts/launch\.py (tune --estimate.*?[^\\])$", text, re.MULTILINE | re.DOTALL)
    argv = shlex.split(command.replace("\\\n", " ").replace("--data photos", f"--data {drawn_data}"))
    argv[argv.index("--record") + 1] = files[-1]
    assert launch(*argv, *files[1:3]).code == 0


def test_nothing_is_asked_of_aws(launch, files):
    def refuse(*_):
        raise AssertionError

    launch.aws = refuse
    assert launch("tune", *files, "--search", "lr").code == 0
    (call,) = json.loads(launch("tune", *files, "--search", "lr", "--dry-run").out)
    assert call["operation"] == "Estimate"


def test_images_are_counted_in_a_folder(launch, files, drawn_data):
    ended = launch("tune", *files, "--data", str(drawn_data), "--search", "lr")
    assert "assumed: 36 images" in ended.err


def test_where_one_job_cannot_do_it_that_is_said(launch, files):
    ended = launch("tune", *files, "--choice", "model=resnet18,resnet34", "--search", "lr")
    assert "inside one job" not in ended.out
    assert "inside one job it cannot be done, because of model" in ended.err
    ended = launch("tune", *files, "--search", "lr", "--hp", "trainable=all")
    assert "inside one job it cannot be done, because of trainable=all" in ended.err


def test_hyperband_is_estimated_by_its_brackets(launch, files):
    ended = launch("tune", *files, "--strategy", "Hyperband", "--search", "lr", "--hp", "epochs=27")
    assert f"of {estimate.hyperband_epochs(2, 27):.2f}".rstrip("0") in ended.err
    assert "Hyperband's brackets" in ended.err


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (("--estimate",), "--estimate needs to know what an image costs: give --record"),
        (("--estimate", "--image-ms", "3"), "--estimate needs to know what an image costs"),
        (("--estimate", "--image-ms", "3", "--epoch-ms", "0.02"), "how many images there are: give --images N"),
        (("--estimate", "--image-ms", "fast"), "'fast' is not a number from 0 on"),
        (("--estimate", "--record", "gone.json"), "--record gone.json cannot be read as the record of a job"),
        (("--estimate", "--local"), "--estimate is of a search in an account"),
        (
            ("--estimate", "--images", "9", "--image-ms", "3", "--epoch-ms", ".02"),
            "scripts/prices.toml has no price of ml.g4dn.xlarge; look up what an hour of it costs you for training in "
            'your region, and add under [hour] a line "ml.g4dn.xlarge" = PRICE',
        ),
        (
            ("--estimate", "--images", "9", "--image-ms", "3", "--epoch-ms", ".02", "--prices", "gone.toml"),
            "--prices gone.toml cannot be read",
        ),
    ],
)
def test_what_cannot_be_estimated_is_refused_in_one_sentence(launch, argv, error):
    ended = launch("tune", "--search", "lr", *argv)
    assert ended.code == 2
    assert error in ended.err
    assert ended.out == ""


@pytest.mark.parametrize("text", ['[hour]\n"ml.g4dn.xlarge" = 0.0', '[hour]\n"ml.g4dn.xlarge" = nan', "hour = 3", "{"])
def test_a_price_is_a_number_above_0(tmp_path, text):
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(SettingError, match=r"prices\.toml"):
        estimate.price(file, "ml.g4dn.xlarge")


def test_the_file_that_is_shipped_invents_no_price():
    import tomllib

    assert tomllib.loads(estimate.PRICES.read_text())["hour"] == {}


@pytest.mark.parametrize("change", [{"epochs": []}, {"facts": {}}, {"started": "then"}, {"epochs": [{}]}])
def test_what_is_no_record_of_a_whole_job_is_refused(tmp_path, change):
    file = tmp_path / "record.json"
    file.write_text(json.dumps(RECORD | change))
    with pytest.raises(SettingError, match="record"):
        estimate.measured(file)
