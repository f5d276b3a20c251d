#!/usr/bin/env bash
# Trains as a process of this machine, on a folder laid out like /opt/ml. In the image: make local-train.
set -euo pipefail
cd "$(dirname "$0")/.."

usage='usage: DATA=FOLDER [WEIGHTS=FILE] [HP="name=value ..."] [ML=build/ml] local_test/train_local.sh'
if [[ $# -ne 0 ]]; then
  echo "$usage" >&2
  exit 2
fi

python=$PWD/.venv/bin/python
ml=${ML:-build/ml}
if [[ ! -x $python ]]; then
  echo "there is no .venv; run: make install" >&2
  exit 1
fi
# What a job can compute again; kept between jobs, as a warm pool keeps it.
cache=$PWD/build/cache/features
mkdir -p "$cache"
# Ctrl-C would be a traceback of Python's own start; what is laid out in a moment may as well be whole.
trap 'echo interrupted >&2; exit 130' INT
(trap '' INT; exec "$python" local_test/stage.py "$ml" --data "${DATA:-}" --weights "${WEIGHTS:-}" --hp "${HP:-}")
# As the image sets it: torch's threads leave the cores to the loader's processes while they wait.
export OMP_WAIT_POLICY=PASSIVE
# exec: a signal to this script is a signal to the job.
SAGEMAKER_BASE_DIR=$(realpath "$ml") DOGBREED_CACHE_DIR=$cache exec "$python" container/train
