"""What the launcher says at the end of a job that went well is no traceback."""

import logging
from pathlib import Path

from torch.distributed.elastic.agent.server import api

from dogbreed.training.processes import is_no_farewell


def record(message, *arguments):
    return logging.LogRecord(api.logger.name, logging.ERROR, "api.py", 1, message, arguments, None)


def test_a_host_that_was_gone_first_is_no_trouble_and_all_else_is():
    assert not is_no_farewell(record("Error waiting on exit barrier. Elapsed: %s seconds", 0.1))
    assert is_no_farewell(record("Received %s death signal", 15))


def test_the_launcher_still_says_it_in_these_words_by_this_logger():
    assert api.logger.name == "torch.distributed.elastic.agent.server.api"
    assert '"Error waiting on exit barrier.' in Path(api.__file__).read_text()
