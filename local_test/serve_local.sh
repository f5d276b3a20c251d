#!/usr/bin/env bash
# Serves the model of a local run as a process of this machine, on 127.0.0.1 only. In the image: make local-serve.
set -euo pipefail
cd "$(dirname "$0")/.."

usage='usage: [ML=build/ml] [PORT=8080] local_test/serve_local.sh'
if [[ $# -ne 0 ]]; then
  echo "$usage" >&2
  exit 2
fi

python=$PWD/.venv/bin/python
ml=${ML:-build/ml}
port=${PORT:-8080}
local_test/require_bundle.sh "$ml" train
if [[ ! -x $python ]]; then
  echo "there is no .venv; run: make install" >&2
  exit 1
fi
echo "http://127.0.0.1:$port/ (Ctrl-C stops)"
SAGEMAKER_BASE_DIR=$(realpath "$ml")
export SAGEMAKER_BASE_DIR SAGEMAKER_BIND_TO_PORT=$port DOGBREED_HOST=127.0.0.1 DOGBREED_PAGE=true
exec "$python" container/serve
