"""Which fault this subject has: the name in the file `fault` beside it; none without the file."""

import socket
from pathlib import Path

_FILE = Path(__file__).with_name("fault")
FAULT = _FILE.read_text(encoding="utf-8").strip() if _FILE.exists() else ""


def has(fault: str) -> bool:
    """Whether the subject is to do this wrong. Every fault has the name of the check that must find it."""
    return fault == FAULT


def reach_outside() -> None:
    """Connects to the address in the file `outside`: host and port."""
    host, port = Path(__file__).with_name("outside").read_text(encoding="utf-8").split()
    socket.create_connection((host, int(port)), 2).close()
