#!/usr/bin/env bash
# The whole thing on drawn images: draw, train, judge, serve, ask. Everything it writes is below build/demo.
set -euo pipefail
cd "$(dirname "$0")/.."

usage='usage: [PORT=8080] local_test/demo.sh'
if [[ $# -ne 0 ]]; then
  echo "$usage" >&2
  exit 2
fi
python=$PWD/.venv/bin/python
if [[ ! -x $python ]]; then
  echo "there is no .venv; run: make install" >&2
  exit 1
fi
data=$PWD/build/demo/data
ml=$PWD/build/demo/ml
log=$PWD/build/demo/server.log
report=$ml/output/data/insight/report.html

step() { printf '\n== %s\n' "$*"; }

# Tells on standard output the port asked for, or a free one when that is taken.
free_port() {
  "$python" - "$1" <<'PYTHON'
import socket
import sys

for port in (int(sys.argv[1]), 0):
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            continue
        print(listener.getsockname()[1])
        break
PYTHON
}

# GET of a URL, or POST of a photo to it; prints a JSON answer. Python, because a fresh machine may have no curl.
request() {
  "$python" - "$@" <<'PYTHON'
import json
import sys
import urllib.request
from pathlib import Path

body = Path(sys.argv[2]).read_bytes() if len(sys.argv) > 2 else None
headers = {"Content-Type": "image/jpeg", "Accept": "application/json"} if body else {}
try:
    with urllib.request.urlopen(urllib.request.Request(sys.argv[1], body, headers), timeout=30) as answer:
        text = answer.read().decode()
except OSError as error:
    sys.exit(str(error))
if body:
    print(json.dumps(json.loads(text), indent=2, ensure_ascii=False))
PYTHON
}

step "1 of 4: draw a small data set"
"$python" local_test/make_data.py "$data" --train 120 --valid 20 --test 20

step "2 of 4: train a small network on it"
DATA=$data ML=$ml WEIGHTS='' \
  HP="model=tiny pretrained=false trainable=all image-size=64 augment=flip epochs=30 patience=10 lr=0.005" \
  local_test/train_local.sh

step "3 of 4: start the server (log: ${log#"$PWD"/})"
port=$(free_port "${PORT:-8080}")
url=http://127.0.0.1:$port
ML=$ml PORT=$port local_test/serve_local.sh >"$log" 2>&1 </dev/null &
server=$!
stop() {
  kill -TERM "$server" 2>/dev/null || true
  wait "$server" || true
}
trap stop EXIT
for ((tries = 0; ; tries++)); do
  if request "$url/ping" 2>/dev/null; then
    break
  fi
  if ((tries == 240)) || ! kill -0 "$server" 2>/dev/null; then
    tail -n 20 "$log" >&2
    echo "the server did not become ready; the end of its log is above" >&2
    exit 1
  fi
  sleep 0.25
done
echo "$url/ping answers 200"

photos=("$data"/test/*/*.jpg)
photo=${photos[-1]}
step "4 of 4: ask it what ${photo#"$PWD"/} shows"
request "$url/invocations" "$photo"

step "look at"
if [[ -f $report ]]; then
  echo "  file://$report   what the training did, with the verdicts"
fi
if [[ ! -t 0 ]]; then
  echo "  $url/   to try photos of your own, while a server runs: make serve ML=build/demo/ml"
  exit 0
fi
echo "  $url/   to try photos of your own"
echo
echo "press Ctrl-C to stop"
trap 'exit 0' INT
wait "$server"
