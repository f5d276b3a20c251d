"""docs/aws.md shows what the command really prints."""

import json
import re
import shlex

from tests.launch.conftest import REGION, REPOSITORY, ROLE
from tests.launch.scripted import Scripted


def test_the_request_in_the_guide_is_the_one_that_the_command_makes(launch):
    text = (REPOSITORY / "docs" / "aws.md").read_text(encoding="utf-8")
    command = re.search(r"## train\n\n```bash\nscripts/launch\.py (.*?)```", text, re.DOTALL)
    shown = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert command
    assert shown
    launch.environ |= {
        "DOGBREED_ROLE": ROLE,
        "DOGBREED_BUCKET": "my-bucket",
        "DOGBREED_IMAGE": f"111122223333.dkr.ecr.{REGION}.amazonaws.com/dogbreed:0123abc",
    }
    launch.aws = Scripted()
    ended = launch(*shlex.split(command.group(1).replace("\\\n", " ")), "--dry-run")
    (call,) = json.loads(ended.out)
    specification = call["parameters"]["AlgorithmSpecification"]
    metrics = specification["MetricDefinitions"]
    # Those of the rules are all alike; the guide shows the first and says how many they are.
    rules = [one for one in metrics if one["Name"].startswith("rule_")]
    assert f"one such definition for each of the {len(rules)} rules" in text
    specification["MetricDefinitions"] = [one for one in metrics if one not in rules[1:]]
    assert [call] == json.loads(shown.group(1))
