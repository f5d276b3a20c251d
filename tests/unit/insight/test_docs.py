from dataclasses import fields
from pathlib import Path

import pytest

from dogbreed.insight.rules.registry import RULES

GUIDE = (Path(__file__).resolve().parents[3] / "docs" / "insight.md").read_text(encoding="utf-8")
ROWS = {row.split("|")[1].strip(): row for row in GUIDE.splitlines() if row.count("|") == 7}


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_guides_table_names_every_rule_with_its_parameters_and_defaults(name):
    told = [part.strip() for part in ROWS[name].split("|")[3].split(",") if part.strip()]
    assert [part.split("=")[0] for part in told] == [one.name for one in fields(RULES[name])]
    for part, field in zip(told, fields(RULES[name]), strict=True):
        text = part.partition("=")[2].split(" ")[0]
        if not text:
            assert field.default in (None, "")
        elif text in ("true", "false"):
            assert field.default is (text == "true")
        else:
            assert float(text) == field.default


def test_the_guides_table_names_no_other_rules():
    assert {name for name in ROWS if name != "rule" and not name.startswith("-")} == set(RULES)
