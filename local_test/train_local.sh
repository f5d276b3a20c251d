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
# As the image sets it: torch's threads leave the cores to the loader's processes while they wait.
export OMP_WAIT_POLICY=PASSIVE DOGBREED_CACHE_DIR=$cache
# One process becomes the next: a signal to this script is a signal to the job, and the folder is held until it ends.
exec "$python" local_test/stage.py "$ml" --data "${DATA:-}" --weights "${WEIGHTS:-}" --hp "${HP:-}" --then container/train
