#!/usr/bin/env bash
# Says, of a folder of local runs that holds no model, how to get one. Says nothing where there is one.
set -euo pipefail

if [[ $# -ne 2 ]]; then
  echo 'usage: local_test/require_bundle.sh ML TARGET' >&2
  exit 2
fi
ml=$1 target=$2
if [[ -f $ml/model/bundle.json ]]; then
  exit 0
fi
if [[ -f $ml/model.previous/bundle.json ]]; then
  printf '%s holds no bundle.json, the last job left none; the model before it is in %s, to take it back: rm -rf %q && mv %q %q\n' \
    "$ml/model" "$ml/model.previous" "$ml/model" "$ml/model.previous" "$ml/model" >&2
else
  echo "$ml/model holds no bundle.json; train first: make $target DATA=path/to/images" >&2
fi
exit 1
