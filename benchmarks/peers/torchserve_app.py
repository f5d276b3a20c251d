"""TorchServe, which is archived, with our engine and decoder in one worker process per CPU; needs Java 17."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from common import CPUS, PORT

_HERE = Path(__file__).resolve().parent
_SETTINGS = """\
inference_address=http://127.0.0.1:{port}
management_address=http://127.0.0.1:{others[0]}
metrics_address=http://127.0.0.1:{others[1]}
grpc_inference_port={others[2]}
grpc_management_port={others[3]}
disable_token_authorization=true
default_workers_per_model={cpus}
job_queue_size=1000
load_models=ours.mar
model_store={store}
"""


def free_ports(count: int) -> list[int]:
    """Of this machine, found all at once, so that they differ."""
    opened = [socket.socket() for _ in range(count)]
    for one in opened:
        one.bind(("127.0.0.1", 0))
    ports: list[int] = [one.getsockname()[1] for one in opened]
    for one in opened:
        one.close()
    return ports


def main() -> None:
    """Packs the handler and becomes the server."""
    programs = Path(sys.executable).parent
    store = _HERE.parents[1] / "build" / "bench" / "torchserve"
    store.mkdir(parents=True, exist_ok=True)
    packing = ["--model-name", "ours", "--version", "1", "--handler", str(_HERE / "torchserve_handler.py"), "--force"]
    subprocess.run([programs / "torch-model-archiver", *packing, "--export-path", store], check=True)  # noqa: S603
    settings = store / "config.properties"
    settings.write_text(_SETTINGS.format(port=PORT, others=free_ports(4), cpus=CPUS, store=store))
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    os.environ["BENCH_PEERS"] = str(_HERE)
    os.chdir(store)  # where it writes its logs
    serve = str(programs / "torchserve")
    os.execv(serve, [serve, "--start", "--foreground", "--ncs", "--ts-config", str(settings)])  # noqa: S606


if __name__ == "__main__":
    main()
