#!/usr/bin/env bash
# Builds the image and puts it into a registry: Amazon ECR, or any other. The last line, on standard output, is the
# image by its digest; everything else goes to standard error.
set -euo pipefail
cd "$(dirname "$0")/.."

usage='usage: scripts/build_and_push.sh [OPTION ...]

Builds the image, tags it with the git revision, makes the ECR repository if it is missing, and pushes. Prints
REGISTRY/REPOSITORY@DIGEST. What the registry holds already is not pushed again.

where to, each by option or variable:
  --account ID        AWS account, 12 digits (AWS_ACCOUNT_ID)
  --region NAME       AWS region (AWS_REGION, AWS_DEFAULT_REGION)
  --repository NAME   repository in the registry (DOGBREED_REPOSITORY); default dogbreed
  --registry HOST     any other registry, as 127.0.0.1:5000 or ghcr.io/owner; nothing is asked of AWS, and you have
                      logged in by docker login where the registry wants that

a repository that is made here scans images as they are pushed, and
  --immutable         never lets a tag be moved to another image
  --keep N            keeps the newest N images and lets ECR delete the others; default 30. An endpoint cannot start
                      further instances of an image that is deleted.

what:
  --no-build          push the image TAG as it is (environment variable TAG; default dogbreed:latest)
  --allow-dirty       push although the checkout has changes; the tag then ends in -dirty
  -h, --help          print this

Credentials are those of the aws command. The build takes BACKBONES, WEIGHTS_DIR, TORCH_INDEX and DOCKER_BUILD_FLAGS
from the environment, as make build does; the tag of a CPU image (TORCH_INDEX) ends in -cpu.'

say() { echo "build_and_push: $*" >&2; }
fail() {
  say "$*"
  exit 1
}
misused() {
  say "$*; --help says more"
  exit 2
}
# The last line of a program's complaint that says anything.
gist() { grep -v '^[[:space:]]*$' <<<"$1" | tail -n 1 || true; }

account=${AWS_ACCOUNT_ID:-}
region=${AWS_REGION:-${AWS_DEFAULT_REGION:-}}
repository=${DOGBREED_REPOSITORY:-dogbreed}
registry=
mutability=MUTABLE
keep=30
build=yes
allow_dirty=no
local_tag=${TAG:-dogbreed:latest}
while (($#)); do
  case $1 in
    --account | --region | --repository | --registry | --keep)
      [[ -n ${2:-} ]] || misused "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --immutable) mutability=IMMUTABLE ;;
    --no-build) build=no ;;
    --allow-dirty) allow_dirty=yes ;;
    -h | --help)
      echo "$usage"
      exit 0
      ;;
    *) misused "unknown argument $1" ;;
  esac
  shift
done

# Everything that can be wrong with what was given, before anything is built.
if [[ -z $registry ]]; then
  [[ -n $account ]] || misused "no account: give --account or AWS_ACCOUNT_ID, or another registry by --registry"
  [[ $account =~ ^[0-9]{12}$ ]] || misused "account '$account' is not 12 digits: give --account or AWS_ACCOUNT_ID"
  [[ -n $region ]] || misused "no region: give --region or AWS_REGION, for example eu-west-1"
  [[ $region =~ ^[a-z]{2,}(-[a-z]+)+-[0-9]+$ ]] ||
    misused "region '$region' is none: give --region or AWS_REGION, for example eu-west-1"
fi
[[ $repository =~ ^[a-z0-9]+([._/-]+[a-z0-9]+)*$ ]] ||
  misused "repository '$repository' is not of lower-case letters, digits and . _ - /: give --repository"
[[ $keep =~ ^[1-9][0-9]*$ ]] || misused "--keep '$keep' is not a number above 0"
tools=(git docker)
[[ -n $registry ]] || tools+=(aws)
for tool in "${tools[@]}"; do
  command -v "$tool" >/dev/null || fail "$tool is not installed"
done

revision=$(git rev-parse --verify --quiet HEAD) ||
  fail "$PWD is no git checkout with a commit: the tag is made of its revision"
# Untracked files count: the build copies those of container/dogbreed as well.
if [[ -n $(git status --porcelain) ]]; then
  [[ $allow_dirty == yes ]] || fail "the checkout has changes (git status): commit them, or give --allow-dirty"
  revision+=-dirty
fi

if [[ $build == yes ]]; then
  say "building $local_tag"
  make --no-print-directory build TAG="$local_tag" REVISION="$revision" >&2
fi
complaint=$(docker image inspect "$local_tag" 2>&1 >/dev/null) ||
  fail "no image $local_tag to push ($(gist "$complaint")); leave --no-build out, or set TAG"
image=$(docker image inspect --format '{{.Id}}' "$local_tag")
label='{{with .Config.Labels}}{{index . "org.opencontainers.image.revision"}}{{end}}'
built_from=$(docker image inspect --format "$label" "$local_tag")
# A tag that names another revision than the image's own would send whoever looks for a fault to the wrong code.
# `make build` does not count untracked files, hence the third.
if [[ -n $built_from && $built_from != "$revision" && $built_from-dirty != "$revision" ]]; then
  fail "$local_tag was built from $built_from, the checkout is at $revision: leave --no-build out"
fi

# Makes the repository if there is none. Any other answer than "there is none" ends this: a repository made by
# mistake, with the wrong account's credentials say, is worse than a message.
ensure_repository() {
  local complaint policy
  if complaint=$(aws ecr describe-repositories --region "$region" --registry-id "$account" \
    --repository-names "$repository" --output text 2>&1 >/dev/null); then
    return
  fi
  [[ $complaint == *RepositoryNotFoundException* ]] ||
    fail "ECR does not tell of repository $repository: $(gist "$complaint")"
  say "making the repository $repository in $region"
  complaint=$(aws ecr create-repository --region "$region" --registry-id "$account" --repository-name "$repository" \
    --image-scanning-configuration scanOnPush=true --image-tag-mutability "$mutability" \
    --output text 2>&1 >/dev/null) ||
    fail "the repository $repository cannot be made: $(gist "$complaint")"
  policy='{"rules":[{"rulePriority":1,"description":"the newest images","selection":{"tagStatus":"any",'
  policy+='"countType":"imageCountMoreThan","countNumber":'$keep'},"action":{"type":"expire"}}]}'
  complaint=$(aws ecr put-lifecycle-policy --region "$region" --registry-id "$account" --repository-name "$repository" \
    --lifecycle-policy-text "$policy" --output text 2>&1 >/dev/null) ||
    fail "$repository is made, but keeps every image, for its lifecycle policy was refused: $(gist "$complaint")"
}

if [[ -z $registry ]]; then
  registry=$account.dkr.ecr.$region.amazonaws.com
  [[ $region != cn-* ]] || registry+=.cn
  export AWS_PAGER=
  ensure_repository
  # On standard input: an argument could be read by every user of the machine.
  aws ecr get-login-password --region "$region" | docker login --username AWS --password-stdin "$registry" >&2 ||
    fail "logging in to $registry failed"
fi
name=$registry/$repository
# A CPU image is another one than the CUDA image of the same revision.
variant='{{with .Config.Labels}}{{index . "dogbreed.variant"}}{{end}}'
variant=$(docker image inspect --format "$variant" "$local_tag")
remote=$name:$revision${variant:+-$variant}

# What the registry holds under the tag: "DIGEST CONFIG-DIGEST", or nothing.
pushed() {
  local flags=(--verbose) answer
  # The engine speaks plain HTTP with these, and only these, unless its configuration names others.
  [[ ! $registry =~ ^(127\.[0-9.]+|localhost)(:[0-9]+)?(/|$) ]] || flags+=(--insecure)
  if ! answer=$(docker manifest inspect "${flags[@]}" "$remote" 2>&1); then
    [[ $answer == *"no such manifest"* || $answer == *"manifest unknown"* || $answer == *"name unknown"* ]] ||
      fail "$registry does not tell what it holds: $(gist "$answer")"
    return
  fi
  answer=$(tr -d ' \t\n' <<<"$answer")
  local digest='"Descriptor":\{"mediaType":"[^"]*","digest":"(sha256:[0-9a-f]{64})"'
  local config='"config":\{[^}]*"digest":"(sha256:[0-9a-f]{64})"'
  [[ $answer =~ $digest ]] || return 0
  digest=${BASH_REMATCH[1]}
  [[ $answer =~ $config ]] || return 0
  echo "$digest ${BASH_REMATCH[1]}"
}

there=$(pushed)
# An image's id is the digest of its configuration, the same on every machine.
if [[ ${there#* } == "$image" ]]; then
  say "nothing to push: $remote is this image already"
  echo "$name@${there% *}"
  exit 0
fi
docker tag "$local_tag" "$remote"
say "pushing $remote"
docker push "$remote" >&2 || fail "pushing $remote failed, see above"
digest=$(docker image inspect --format '{{join .RepoDigests "\n"}}' "$remote" | grep -F -m 1 "$name@") ||
  fail "$remote is pushed, but the engine does not tell its digest"
say "pushed $remote"
echo "$digest"
