import json
from dataclasses import asdict

import numpy as np
import pytest
from tests.unit.insight.evidence_made import system, times

from dogbreed.insight import profile
from dogbreed.insight.evidence import Evidence
from dogbreed.insight.timeline import Operator


def test_a_profile_is_small_and_json_however_many_samples_there_are():
    base = system(20_000, cpu=np.linspace(0, 100, 20_000), gpu=(50.0, 70.0), memory=(10.0, 20.0))
    known = times(steps={"train": np.full(20_000, 0.2), "validation": []}, base=base)
    made = profile.of(known, [Operator("aten::mm", 3, 0.25, 0.0)])
    assert len(json.dumps(asdict(made))) < 100_000
    assert set(made.series) == {"CPU", "memory", "GPU 0", "GPU 0 memory", "GPU 1", "GPU 1 memory"}
    assert len(made.series["CPU"]) == 300
    assert [y for _, y in made.series["CPU"]] == sorted(y for _, y in made.series["CPU"])
    assert np.mean([y for _, y in made.series["CPU"]]) == pytest.approx(50, abs=0.5)
    assert set(made.steps) == {"train"}
    assert (made.steps["train"]["steps"], made.steps["train"]["p50_ms"]) == (20_000, 200.0)
    assert made.operators[0]["name"] == "aten::mm"
    assert made.usage["GPU"]["p50"] == 60


def test_nothing_known_gives_an_empty_profile():
    assert profile.of(Evidence()) == profile.Profile()
