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
    assert json.loads(ended.out) == json.loads(shown.group(1))
