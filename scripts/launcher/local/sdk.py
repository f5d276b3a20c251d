"""Sends requests to the SageMaker SDK's local mode: a program, `python -m scripts.launcher.local.sdk`.

Reads from standard input the JSON that `process.start` writes, and executes its calls one after the other with the
`LocalSession` of sagemaker-core, which runs the image by Docker Compose and writes the log to standard output. It is a
process of its own because the SDK takes seconds to import, prints as it likes, and holds an endpoint only as long as
the process lives: this one ends when the endpoint's container does.

The only module that imports sagemaker. Needs no account: the region and the credentials below are never sent anywhere,
and the SDK's telemetry is off. Source of what is worked around: sagemaker-core 2.27, core/local/image.py.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from typing import Any

COMPLAINT = " failed in local mode: "
"""In the line that says what the SDK raised, after the name of the call."""

REGION = "us-east-1"
"""For the SDK, which wants one before it does anything."""

_NO_TELEMETRY = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}


class _LoopbackPort(int):
    """A port that Compose publishes on 127.0.0.1 alone.

    The SDK formats it once as text for Compose, `PORT:8080`, which would open it to the network, and once as a number
    for its own health check.
    """

    def __str__(self) -> str:
        return f"127.0.0.1:{int(self)}"


def main() -> int:
    """Executes the calls; 1 when the SDK reports a failure, with its sentence as the last line."""
    import boto3
    from botocore import xform_name
    from sagemaker.core.local.local_session import LocalSession

    plan: dict[str, Any] = json.load(sys.stdin)
    logging.getLogger("sagemaker").setLevel(logging.ERROR)
    # The thread that holds an endpoint fails when its container is stopped, which is how an endpoint ends.
    threading.excepthook = lambda failure: print(failure.exc_value, flush=True)
    credentials = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
    session = LocalSession(boto3.Session(region_name=REGION, **credentials), sagemaker_config=_NO_TELEMETRY)
    session.config = {
        "local": {
            "container_root": plan["scratch"],
            "serving_port": _LoopbackPort(plan["port"]),
            "container_config": plan["container"],
        }
    }
    for call in plan["calls"]:
        try:
            getattr(session.sagemaker_client, xform_name(call["operation"]))(**call["parameters"])
        except Exception as error:  # the SDK raises RuntimeError, ValueError, ImportError and its own
            print(f"{call['operation']}{COMPLAINT}{error}", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
