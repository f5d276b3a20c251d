#!/usr/bin/env bash
# Sends one photo to a server of this machine and prints the answer.
set -euo pipefail

usage='usage: [PORT=8080] local_test/predict.sh PHOTO'
if [[ $# -ne 1 || -z $1 ]]; then
  echo "$usage" >&2
  echo "no photo is named; write for example: make predict IMAGE=path/to/photo.jpg" >&2
  exit 2
fi
photo=$1
port=${PORT:-8080}
if [[ ! $port =~ ^[0-9]{1,5}$ ]] || ((10#$port < 1 || 10#$port > 65535)); then
  echo "PORT=$port is not a port; give a number from 1 to 65535" >&2
  exit 2
fi
url=http://127.0.0.1:$port/invocations

if [[ ! -f $photo ]]; then
  echo "$photo is not a file" >&2
  exit 1
fi
if ! command -v curl >/dev/null; then
  echo "curl is not installed; install it, or post the photo to $url in another way" >&2
  exit 1
fi
case ${photo,,} in
  *.jpg | *.jpeg) type=image/jpeg ;;
  *.png) type=image/png ;;
  *.webp) type=image/webp ;;
  *.bmp) type=image/bmp ;;
  *) type=application/x-image ;; # SageMaker's name for any image
esac

scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
answer=$scratch/answer
failed=0
status=$(curl --silent --show-error --max-time 60 --output "$answer" --write-out '%{http_code}' \
  --header "Content-Type: $type" --header "Accept: application/json" --data-binary "@$photo" "$url" \
  2>"$scratch/error") || failed=$?
if ((failed == 7)); then # curl: failed to connect
  echo "nothing listens on $url; start the server: make serve" >&2
  exit 1
elif ((failed)); then
  cat "$scratch/error" >&2
  exit 1
fi
python3 -m json.tool --no-ensure-ascii "$answer" 2>/dev/null || cat "$answer"
if [[ $status != 200 ]]; then
  echo "HTTP status $status" >&2
  exit 1
fi
