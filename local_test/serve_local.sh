#!/usr/bin/env bash
# Serves the model of a local run, as a process of this machine or in the image, on 127.0.0.1 only.
set -euo pipefail
cd "$(dirname "$0")/.."

usage='usage: [ML=build/ml] [PORT=8080] [TAG=dogbreed:latest] [DOCKER_RUN_FLAGS="--gpus all"]
       local_test/serve_local.sh process|image'
mode=${1:-}
if [[ $# -ne 1 || ! $mode =~ ^(process|image)$ ]]; then
  echo "$usage" >&2
  exit 2
fi

ml=${ML:-build/ml}
port=${PORT:-8080}
if [[ ! -f $ml/model/bundle.json ]]; then
  echo "$ml/model holds no bundle.json; train first: make train DATA=path/to/images" >&2
  exit 1
fi
ml=$(realpath "$ml")
echo "http://127.0.0.1:$port/ (Ctrl-C stops)"

if [[ $mode == process ]]; then
  python=$PWD/.venv/bin/python
  if [[ ! -x $python ]]; then
    echo "there is no .venv; run: make install" >&2
    exit 1
  fi
  export SAGEMAKER_BASE_DIR=$ml SAGEMAKER_BIND_TO_PORT=$port DOGBREED_HOST=127.0.0.1 DOGBREED_PAGE=true
  exec "$python" container/serve
fi

tag=${TAG:-dogbreed:latest}
docker image inspect "$tag" >/dev/null || {
  echo "there is no image $tag, or no Docker engine; run: make build" >&2
  exit 1
}
read -r -a flags <<<"${DOCKER_RUN_FLAGS:-}"
# exec: Docker's client hands a signal on to the container.
exec docker run --rm "${flags[@]}" --publish "127.0.0.1:$port:8080" --env DOGBREED_PAGE=true \
  --mount "type=bind,source=$ml/model,target=/opt/ml/model,readonly" "$tag" serve
