"""Presets: recipes that are read as strictly as a user's own words, and that explicit words override."""

import pytest

from dogbreed import presets
from dogbreed.errors import HyperparameterError
from dogbreed.hyperparameters import Hyperparameters
from dogbreed.presets import PRESETS

NAMES = sorted(PRESETS)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_what_a_user_would_have_written(name):
    written = Hyperparameters.parse(PRESETS[name].values)
    found = Hyperparameters.parse({"preset": name})
    assert found.as_dict() == {**written.as_dict(), "preset": name}
    assert found.as_dict() != {**Hyperparameters().as_dict(), "preset": name}


@pytest.mark.parametrize("name", NAMES)
def test_explicit_values_win_in_either_spelling(name):
    found = Hyperparameters.parse({"preset": name, "batch_size": "17", "weight-decay": "0.5", "model": "tiny"})
    assert (found.batch_size, found.weight_decay, found.model) == (17, 0.5, "tiny")
    kept = set(PRESETS[name].values) - {"batch-size", "weight-decay", "model"}
    assert kept
    recipe = Hyperparameters.parse(PRESETS[name].values).as_dict()
    assert {key: found.as_dict()[key] for key in kept} == {key: recipe[key] for key in kept}


def test_an_explicit_default_wins_too():
    assert Hyperparameters.parse({"preset": "resnet152", "hidden-units": "0"}).hidden_units == 0


@pytest.mark.parametrize("name", NAMES)
def test_what_a_bundle_records_is_parsed_back(name):
    recorded = Hyperparameters.parse({"preset": name, "epochs": "7"})
    assert Hyperparameters.parse({key: str(value) for key, value in recorded.as_dict().items()}) == recorded


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(HyperparameterError) as error:
        Hyperparameters.parse({"preset": "resnet51"})
    assert str(error.value) == (
        f"hyperparameters: preset='resnet51' is not allowed; give one of none, {', '.join(PRESETS)}"
    )


def test_a_bad_value_beside_a_preset_is_refused():
    with pytest.raises(HyperparameterError, match="lr='fast' is not allowed"):
        Hyperparameters.parse({"preset": "resnet50", "lr": "fast"})


def test_a_value_that_cannot_go_with_the_presets_own_is_refused():
    with pytest.raises(HyperparameterError, match="accumulate=64 cannot split batch-size=32"):
        Hyperparameters.parse({"preset": "resnet50-sgd", "accumulate": "64"})


def test_the_recipes_are_those_of_the_earlier_projects():
    asked = {name: Hyperparameters.parse({"preset": name}) for name in NAMES}
    assert (asked["densenet121"].model, asked["densenet121"].batch_size) == ("densenet121", 128)
    assert asked["resnet18"].model == "resnet18"
    assert (asked["resnet152"].model, asked["resnet152"].hidden_units) == ("resnet152", 256)
    assert 16 <= asked["resnet50"].batch_size <= 64
    sgd = asked["resnet50-sgd"]
    assert (sgd.model, sgd.optimizer, sgd.schedule) == ("resnet50", "sgd", "step")
    assert sgd.patience > 0
    assert sgd.step_epochs < sgd.epochs


def test_the_table_has_a_row_for_each():
    rows = presets.markdown_table().splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [f"`{name}`" for name in PRESETS]
    assert all(row.count("|") == 4 for row in rows)
    assert all(preset.help.endswith(".") for preset in PRESETS.values())
