"""Hyperparameters: strict, forgiving only of what launchers do to strings, and every error in one line."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dogbreed import hyperparameters, presets
from dogbreed.errors import HyperparameterError
from dogbreed.hyperparameters import Hyperparameters, declarations

README = Path(__file__).resolve().parents[2] / "README.md"

NAMES = [declaration.name for declaration in declarations()]
DECLARED = {declaration.name: declaration for declaration in declarations()}


def parse(**raw):
    """Parses strings given as keyword arguments, as a job would."""
    return Hyperparameters.parse(raw)


def fails(**raw):
    with pytest.raises(HyperparameterError) as error:
        Hyperparameters.parse(raw)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_nothing_given_is_all_defaults():
    assert Hyperparameters.parse({}) == Hyperparameters()


@pytest.mark.parametrize("name", NAMES)
def test_every_default_is_its_own_text(name):
    default = DECLARED[name].default
    for text in (str(default), str(default).lower(), f'"{default}"', f"  {default} "):
        parsed = Hyperparameters.parse({name: text})
        assert parsed == Hyperparameters()
        assert type(parsed.as_dict()[name]) is DECLARED[name].type


@pytest.mark.parametrize("name", NAMES)
def test_every_declaration_says_what_it_is(name):
    declaration = DECLARED[name]
    assert declaration.help.endswith(".")
    assert "|" not in declaration.help, "it stands in a table"
    assert declaration.check(declaration.default) == declaration.default
    if declaration.type in (int, float):
        assert declaration.low is not None
        assert declaration.low < declaration.high


@pytest.mark.parametrize("name", [name for name in NAMES if DECLARED[name].search])
def test_whatever_a_search_tries_by_default_is_allowed(name):
    search = DECLARED[name].search
    for value in search.choices or (search.low, search.high):
        assert Hyperparameters.parse({name: str(value)}).as_dict()[name] == value
    if search.scale == "log":
        assert search.low > 0


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("batch-size", [16, 32, 64, 128, 256, 512]),
        ("lr", [0.0001, 0.001, 0.01, 0.1]),
        ("epochs", [2, 50, 120]),
        ("dropout", [0, 0.25, 0.5]),
        ("hidden-units", [128, 256]),
        ("model", ["resnet18", "resnet34", "resnet50", "resnet152", "densenet121"]),
        ("optimizer", ["sgd", "adam", "adamw"]),
    ],
)
def test_what_earlier_projects_searched_is_allowed(name, values):
    for value in values:
        assert Hyperparameters.parse({name: str(value)}).as_dict()[name] == value


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("optimizer", "adam", "adam"),
        ("optimizer", '"adam"', "adam"),
        ("optimizer", '" adam "', "adam"),
        ("batch-size", '"64"', 64),
        ("batch-size", "32.0", 32),
        ("batch-size", "6.4e1", 64),
        ("lr", "1e-3", 0.001),
        ("lr", '"0.01"', 0.01),
        ("lr", "1", 1.0),
        ("pretrained", "False", False),
        ("pretrained", "TRUE", True),
        ("pretrained", "0", False),
        ("pretrained", '"no"', False),
        ("num-workers", "-1", -1),
        ("seed", "2147483647", 2147483647),
    ],
)
def test_launchers_write_values_in_many_ways(name, text, value):
    found = Hyperparameters.parse({name: text}).as_dict()[name]
    assert found == value
    assert type(found) is type(value)


def test_hyphen_and_underscore_are_one():
    assert parse(batch_size="64") == Hyperparameters.parse({"batch-size": "64"}) == Hyperparameters(batch_size=64)


def test_both_spellings_at_once_are_refused():
    with pytest.raises(HyperparameterError, match="batch-size is given twice, with a hyphen and with an underscore"):
        Hyperparameters.parse({"batch-size": "64", "batch_size": "64"})


@pytest.mark.parametrize(
    "name", ["_tuning_objective_metric", "sagemaker_program", "sagemaker_region", "sagemaker_container_log_level"]
)
def test_what_the_platform_adds_is_set_apart(name):
    assert Hyperparameters.parse({name: "anything", "epochs": "2"}) == Hyperparameters(epochs=2)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("learning-rate", None), ("batchsize", "batch-size"), ("bach_size", "batch-size"), ("Epochs", "epochs")],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name, meant):
    message = fails(**{name: "1"})
    assert f"{name!r} is unknown; " in message
    assert (f"did you mean {meant}?" if meant else f"known are {', '.join(NAMES)}") in message


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("lr", "fast", "a number from 1e-07 to 10"),
        ("lr", "0", "a number from 1e-07 to 10"),
        ("lr", "-0.1", "a number from 1e-07 to 10"),
        ("lr", "11", "a number from 1e-07 to 10"),
        ("lr", "nan", "a number from 1e-07 to 10"),
        ("lr", "inf", "a number from 1e-07 to 10"),
        ("lr", "1e999", "a number from 1e-07 to 10"),
        ("lr", "", "a number from 1e-07 to 10"),
        ("lr", "0,1", "a number from 1e-07 to 10"),
        ("lr", "null", "a number from 1e-07 to 10"),
        ("lr", "[0.1]", "a number from 1e-07 to 10"),
        ("batch-size", "32.5", "a whole number from 1 to 8192"),
        ("batch-size", "0", "a whole number from 1 to 8192"),
        ("batch-size", "nan", "a whole number from 1 to 8192"),
        ("batch-size", "inf", "a whole number from 1 to 8192"),
        ("batch-size", "8193", "a whole number from 1 to 8192"),
        ("batch-size", "true", "a whole number from 1 to 8192"),
        ("seed", "2147483648", "a whole number from 0 to 2147483647"),
        ("dropout", "0.95", "a number from 0 to 0.9"),
        ("pretrained", "maybe", "true or false"),
        ("optimizer", "Adam", "one of sgd, adam, adamw"),
        ("optimizer", '"adam', "one of sgd, adam, adamw"),
        ("trainable", "", "one of head, last_stage, all"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name, text, allowed):
    assert fails(**{name: text}) == f"hyperparameters: {name}={text!r} is not allowed; give {allowed}"


def test_every_problem_is_in_one_line():
    message = fails(lr="fast", batchsize="64", epochs="0", momentum="0.5")
    assert message == (
        "hyperparameters: lr='fast' is not allowed; give a number from 1e-07 to 10; "
        "'batchsize' is unknown; did you mean batch-size?; "
        "epochs='0' is not allowed; give a whole number from 1 to 1000"
    )


@given(st.sampled_from(NAMES), st.text(max_size=30) | st.floats().map(str) | st.integers().map(str))
def test_any_text_is_parsed_or_refused_by_name(name, text):
    declaration = DECLARED[name]
    try:
        value = Hyperparameters.parse({name: text}).as_dict()[name]
    except HyperparameterError as error:
        refused = str(error)
    else:
        assert type(value) is declaration.type
        assert declaration.check(value) == value
        return
    if refused != f"hyperparameters: {name}={text!r} is not allowed; give {declaration.allowed}":
        assert refused.startswith(f"hyperparameters: {name}="), "it conflicts with a default"
        assert "; give " in refused


def is_unknown(name):
    return name.replace("_", "-") not in NAMES and not name.startswith(("sagemaker_", "_tuning"))


@given(st.dictionaries(st.text(max_size=20).filter(is_unknown), st.text(max_size=10), min_size=1, max_size=4))
def test_any_unknown_names_are_all_refused_at_once(raw):
    message = fails(**raw)
    assert all(f"{name!r} is unknown; " in message for name in raw)


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_number_of_many_digits_is_refused(digits):
    for name in ("batch-size", "lr"):
        assert "is not allowed" in fails(**{name: "9" * digits})


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (
            {"warmup-epochs": "5", "epochs": "5"},
            "warmup-epochs=5 leaves nothing of epochs=5; give fewer, or more epochs",
        ),
        (
            {"accumulate": "33"},
            "accumulate=33 cannot split batch-size=32, which counts the samples of a whole optimizer step; give at "
            "most 32",
        ),
        (
            {"nesterov": "true", "momentum": "0", "optimizer": "sgd"},
            "nesterov=true needs momentum above 0; give momentum=0.9 or nesterov=false",
        ),
        (
            {"schedule": "plateau", "plateau-patience": "5"},
            "plateau-patience=5 never comes to act before patience=5 ends the job; give fewer, or more patience",
        ),
        (
            {"cutmix": "1"},
            "cutmix=1 needs images or feature maps, and trainable=head learns from stored vectors; give mixup "
            "instead, trainable=last_stage, or cache=false",
        ),
        (
            {"insight": "false", "stop-on": "Overfit"},
            "stop-on=Overfit needs the rules, which insight=false leaves out; give insight=true",
        ),
        (
            {"augment": "randaugment+crop+trivialaugment"},
            "augment=randaugment+crop+trivialaugment names two policies; give trivialaugment or randaugment",
        ),
        (
            {"search-trials": "20", "trainable": "all", "head-epochs": "0"},
            "search-trials=20 with trainable=all tries heads before the rest learns, and head-epochs=0 leaves no "
            "epochs for that; give head-epochs=20, or search with `launch.py tune`",
        ),
        (
            {"search-trials": "20", "trainable": "last_stage", "pretrained": "false"},
            "search-trials=20 with trainable=last_stage tries heads before the rest learns, and pretrained=false "
            "leaves no epochs for that; give head-epochs=20, or search with `launch.py tune`",
        ),
        (
            {"search-trials": "20", "trainable": "all", "search-over": "lr+hidden-units"},
            "search-over=lr+hidden-units: hidden-units is part of the network that trainable=all goes on with; leave "
            "it out, or search with `launch.py tune`",
        ),
        (
            {"search-trials": "2", "cache": "false"},
            "search-trials=2 tries heads on stored features, and cache=false has none; give cache=true, or search with "
            "`launch.py tune`",
        ),
        (
            {"warmup-epochs": "2", "epochs": "1", "accumulate": "9", "batch-size": "8"},
            "warmup-epochs=2 leaves nothing of epochs=1; give fewer, or more epochs; accumulate=9 cannot split "
            "batch-size=8, which counts the samples of a whole optimizer step; give at most 8",
        ),
    ],
)
def test_values_that_cannot_go_together_are_refused(raw, reason):
    assert fails(**raw) == f"hyperparameters: {reason}"


@pytest.mark.parametrize(
    "raw",
    [
        {"warmup-epochs": "4.5", "epochs": "5"},
        {"epochs": "1", "trainable": "all"},
        {"accumulate": "32"},
        {"nesterov": "true", "momentum": "0"},
        {"nesterov": "true", "optimizer": "sgd"},
        {"schedule": "plateau", "plateau-patience": "5", "patience": "0"},
        {"schedule": "plateau", "plateau-patience": "5", "patience": "6"},
        {"plateau-patience": "9"},
        {"cutmix": "1", "trainable": "last_stage"},
        {"cutmix": "1", "cache": "false"},
        {"mixup": "1"},
        {"search-trials": "1", "trainable": "all", "head-epochs": "0"},
        {"search-trials": "20", "trainable": "all", "search-over": "all", "cache": "false"},
        {"search-trials": "20", "trainable": "last_stage", "pretrained": "false", "head-epochs": "3"},
        {"search-trials": "20", "search-over": "all"},
    ],
)
def test_their_neighbours_are_allowed(raw):
    Hyperparameters.parse(raw)


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("crop", True),
        ("flip+colour", True),
        ("erase+trivialaugment+crop", True),
        ("crop+crop", False),
        ("crop+none", False),
        ("auto+flip", False),
        ("crop+", False),
        ("+", False),
        ("crop flip", False),
    ],
)
def test_augmentations_are_joined(text, allowed):
    if allowed:
        assert parse(augment=text).augment == text
    else:
        assert fails(augment=text) == (
            f"hyperparameters: augment={text!r} is not allowed; give auto, none, or any of crop, flip, "
            f"trivialaugment, randaugment, colour, erase joined by +"
        )


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (None, ("lr", "weight-decay")),
        ("dropout+lr", ("dropout", "lr")),
        ("all", hyperparameters.SEARCHED_IN_JOB),
    ],
)
def test_what_the_heads_of_a_search_differ_in(text, names):
    assert parse(**({"search-over": text} if text else {})).searched == names


def test_all_that_heads_can_differ_in_has_a_range():
    for name in hyperparameters.SEARCHED_IN_JOB:
        assert hyperparameters.declared(name).search is not None


@pytest.mark.parametrize("text", ["model", "lr+model", "lr+lr", "all+lr", ""])
def test_what_heads_cannot_differ_in_is_refused(text):
    assert "search-over=" in fails(**{"search-over": text})


@pytest.mark.parametrize(
    ("raw", "epochs"),
    [
        ({}, 0.0),
        ({"trainable": "last_stage"}, 1.0),
        ({"trainable": "all", "epochs": "5"}, 0.5),
        ({"trainable": "all", "epochs": "1"}, 0.1),
        ({"trainable": "all", "warmup-epochs": "0"}, 0.0),
        ({"trainable": "head", "warmup-epochs": "2.5"}, 2.5),
    ],
)
def test_the_warm_up_that_a_job_gets(raw, epochs):
    assert Hyperparameters.parse(raw).warmup == pytest.approx(epochs)


@pytest.mark.parametrize(
    ("raw", "epochs"),
    [
        ({}, 0),
        ({"head-epochs": "7"}, 0),
        ({"trainable": "all"}, 20),
        ({"trainable": "last_stage"}, 20),
        ({"trainable": "all", "pretrained": "false"}, 0),
        ({"trainable": "all", "pretrained": "false", "head-epochs": "3"}, 3),
        ({"trainable": "all", "head-epochs": "0"}, 0),
    ],
)
def test_the_epochs_that_a_head_learns_alone(raw, epochs):
    assert Hyperparameters.parse(raw).most_head_epochs == epochs


def test_as_dict_is_parsed_back():
    changed = Hyperparameters(model="tiny", pretrained=False, lr=0.0003, batch_size=7, augment="crop")
    recorded = changed.as_dict()
    assert list(recorded) == NAMES
    assert Hyperparameters.parse({name: str(value) for name, value in recorded.items()}) == changed


def test_values_cannot_be_changed_after_parsing():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Hyperparameters().lr = 1.0


def test_the_table_has_a_row_for_each():
    table, _, recipes = hyperparameters.markdown_table().partition("\n\n")
    assert recipes == presets.markdown_table()
    rows = table.splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == [f"`{name}`" for name in NAMES]
    assert {row.count("|") for row in rows} == {6}
    assert any(
        row.startswith("| `lr` | `0.001` | a number from 1e-07 to 10 | 0.0001 to 0.1, log | Peak") for row in rows
    )
    assert any(row.startswith("| `pretrained` | `true` | true or false |") for row in rows)


def test_the_module_prints_the_table():
    done = subprocess.run(
        [sys.executable, "-m", "dogbreed.hyperparameters"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, hyperparameters.markdown_table(), "")


@pytest.mark.skipif(not README.exists(), reason="there is no README.md yet")
def test_the_readmes_table_is_up_to_date():
    marked = re.search(
        r"<!-- hyperparameters -->\n+(.*?)\n*<!-- /hyperparameters -->", README.read_text(encoding="utf-8"), re.DOTALL
    )
    assert marked, "README.md has no <!-- hyperparameters --> ... <!-- /hyperparameters -->"
    assert marked.group(1).strip() == hyperparameters.markdown_table().strip()
