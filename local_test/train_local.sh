#!/usr/bin/env bash
# Trains as the platform would, as a process of this machine or in the image, on a folder laid out like /opt/ml.
set -euo pipefail
cd "$(dirname "$0")/.."

usage='usage: DATA=FOLDER [WEIGHTS=FILE] [HP="name=value ..."] [ML=build/ml] [TAG=dogbreed:latest]
       [DOCKER_RUN_FLAGS="--gpus all"] local_test/train_local.sh process|image'
mode=${1:-}
if [[ $# -ne 1 || ! $mode =~ ^(process|image)$ ]]; then
  echo "$usage" >&2
  exit 2
fi

python=$PWD/.venv/bin/python
ml=${ML:-build/ml}
# What a job can compute again; kept between jobs, as a warm pool keeps it.
cache=$PWD/build/cache/features
mkdir -p "$cache"
stage=("$python" local_test/stage.py "$ml" --data "${DATA:-}" --weights "${WEIGHTS:-}" --hp "${HP:-}")
if [[ ! -x $python ]]; then
  echo "there is no .venv; run: make install" >&2
  exit 1
fi

if [[ $mode == process ]]; then
  "${stage[@]}"
  # As the image sets it: torch's threads leave the cores to the loader's processes while they wait.
  export OMP_WAIT_POLICY=PASSIVE
  # exec: a signal to this script is a signal to the job.
  SAGEMAKER_BASE_DIR=$(realpath "$ml") DOGBREED_CACHE_DIR=$cache exec "$python" container/train
fi

tag=${TAG:-dogbreed:latest}
docker image inspect "$tag" >/dev/null || {
  echo "there is no image $tag, or no Docker engine; run: make build" >&2
  exit 1
}
"${stage[@]}" --mounted
ml=$(realpath "$ml")
mounts=(
  --mount "type=bind,source=$ml/input/config,target=/opt/ml/input/config,readonly"
  --mount "type=bind,source=$(realpath "$DATA"),target=/opt/ml/input/data/train,readonly"
  --mount "type=bind,source=$ml/model,target=/opt/ml/model"
  --mount "type=bind,source=$ml/output,target=/opt/ml/output"
  --mount "type=bind,source=$cache,target=/tmp/dogbreed"
)
if [[ -n ${WEIGHTS:-} ]]; then
  mounts+=(--mount "type=bind,source=$(realpath "$WEIGHTS"),target=/opt/ml/input/data/pretrained/$(basename "$WEIGHTS"),readonly")
fi
read -r -a flags <<<"${DOCKER_RUN_FLAGS:-}"
name=dogbreed-train-$$

# A stop of this script is what StopTrainingJob does: SIGTERM, and SIGKILL 120 s later.
trap 'docker stop --time 120 "$name" >/dev/null' INT TERM
docker run --rm --name "$name" "${flags[@]}" "${mounts[@]}" "$tag" train &
client=$!
status=0
wait "$client" || status=$?
if kill -0 "$client" 2>/dev/null; then # a trapped signal ended the first wait
  status=0
  wait "$client" || status=$?
fi
trap - INT TERM

# The container runs as root, as on the platform; give what it wrote to whoever runs this.
if [[ $(id -u) -ne 0 ]]; then
  docker run --rm --entrypoint chown "${mounts[@]}" "$tag" -R "$(id -u):$(id -g)" /opt/ml/model /opt/ml/output /tmp/dogbreed
fi
exit "$status"
