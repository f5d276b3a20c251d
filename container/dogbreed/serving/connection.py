"""Whether the client of a request is still there.

Knows what gunicorn puts into a WSGI environment, and sockets.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any


def is_open(environ: Mapping[str, Any]) -> bool:
    """False when the client has closed its connection: nobody would read the answer.

    Looks without waiting and takes nothing away. Where the server does not show its socket, the client counts as there.
    """
    connection = environ.get("gunicorn.socket")
    if not isinstance(connection, socket.socket):
        return True
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except (BlockingIOError, InterruptedError):
        return True
    except OSError:  # reset
        return False
