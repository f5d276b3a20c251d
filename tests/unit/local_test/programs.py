"""Little programs for tests of the local platform: a folder with `train` and `serve`, written as Python."""

from __future__ import annotations

import textwrap
from pathlib import Path

SERVE = """
    import http.server, os
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(os.environ["SAGEMAKER_BASE_DIR"].encode())
    print("serving", flush=True)
    http.server.HTTPServer(("", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler).serve_forever()
"""


def programs(folder: Path, *, train: str = "", serve: str = SERVE) -> Path:
    """Writes both programs and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in (("train", train), ("serve", serve)):
        (folder / name).write_text("#!/usr/bin/env python3\n" + textwrap.dedent(body))
    return folder
