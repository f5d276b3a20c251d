"""The pushing script with an `aws` and a `docker` that only write down how they were called."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = "scripts/build_and_push.sh"
ECR = "111122223333.dkr.ecr.eu-west-1.amazonaws.com"
SETTINGS = {"AWS_ACCOUNT_ID": "111122223333", "AWS_REGION": "eu-west-1"}
IMAGE_ID = f"sha256:{'1' * 64}"
DIGEST = f"sha256:{'d' * 64}"
PASSWORD = "a-password-of-ecr"

# Answers stand in files named as in Checkout.answer: the exit code in the first line, then what is printed.
FAKE = """#!/usr/bin/env bash
here=$(dirname "$0")
program=$(basename "$0")
stdin=
[[ $* != *--password-stdin* ]] || stdin=$(cat)
{ printf '%s' "$program"; printf '\\t%s' "$@"; printf '\\n<%s\\n' "$stdin"; } >>"$here/calls"
case "$program $*" in
  aws*) answer=aws-$2 ;;
  *"image inspect --format {{.Id}}"*) answer=docker-image-id ;;
  *"image inspect --format {{with .Config.Labels}}"*variant*) answer=docker-image-variant ;;
  *"image inspect --format {{with .Config.Labels}}"*) answer=docker-image-revision ;;
  *"image inspect --format {{join .RepoDigests"*) answer=docker-image-digests ;;
  *"image inspect"*) answer=docker-image ;;
  *) answer=docker-$1 ;;
esac
[[ -f $here/$answer ]] || exit 0
[[ $(head -n 1 "$here/$answer") == 0 ]] || exec >&2
tail -n +2 "$here/$answer"
exit "$(head -n 1 "$here/$answer")"
"""


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Checkout:
    """A git checkout with the script in it, and the two programs it calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.bin = folder / "bin"
        (self.folder / "scripts").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(ROOT / SCRIPT, self.folder / SCRIPT)
        shutil.copy(ROOT / "Makefile", self.folder)
        for program in ("aws", "docker"):
            (self.bin / program).write_text(FAKE)
            (self.bin / program).chmod(0o755)
        self.git("init", "--quiet")
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", "all")
        self.revision = self.git("rev-parse", "HEAD").strip()
        self.remote = f"{ECR}/dogbreed:{self.revision}"
        self.answer("aws-get-login-password", PASSWORD)
        self.answer("docker-image-id", IMAGE_ID)
        self.answer("docker-image-revision", self.revision)
        self.answer("docker-image-digests", f"elsewhere/dogbreed@sha256:{'0' * 64}\n{ECR}/dogbreed@{DIGEST}")
        self.remote_holds(None)

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=self.folder, capture_output=True, text=True, check=True
        )
        return done.stdout

    def answer(self, name: str, text: str, code: int = 0) -> None:
        """What a program prints from now on: aws-COMMAND, docker-COMMAND, docker-image-id, -revision or -digests."""
        (self.bin / name).write_text(f"{code}\n{text}\n")

    def remote_holds(self, image_id: str | None) -> None:
        """What `docker manifest inspect --verbose` of engine 20.10 prints; None: no such tag."""
        manifest = {
            "Ref": "any",
            "Descriptor": {"mediaType": "application/vnd.docker.distribution.manifest.v2+json", "digest": DIGEST},
            "SchemaV2Manifest": {"config": {"mediaType": "any", "size": 1, "digest": image_id}, "layers": []},
        }
        if image_id is None:
            self.answer("docker-manifest", f"no such manifest: {self.remote}", code=1)
        else:
            self.answer("docker-manifest", json.dumps(manifest, indent=4))

    def run(self, *arguments: str, command: tuple[str, ...] = (SCRIPT,), **variables: str) -> Result:
        kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
        environment = {**kept, **SETTINGS, "PATH": f"{self.bin}:{os.environ['PATH']}", **variables}
        done = subprocess.run(
            [*command, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60
        )
        return Result(done.returncode, done.stdout, done.stderr)

    @property
    def calls(self) -> list[list[str]]:
        """Program and arguments of every call, in order."""
        lines = (self.bin / "calls").read_text().splitlines() if (self.bin / "calls").exists() else []
        return [line.split("\t") for line in lines if not line.startswith("<")]

    def called(self, *words: str) -> list[list[str]]:
        return [call for call in self.calls if call[: len(words)] == list(words)]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def option(call: list[str], name: str) -> str:
    return call[call.index(name) + 1]


def test_it_builds_logs_in_pushes_and_prints_the_digest_alone(checkout):
    result = checkout.run()
    assert result == (0, f"{ECR}/dogbreed@{DIGEST}\n", result.err), result.err
    (build,) = checkout.called("docker", "build")
    assert f"REVISION={checkout.revision}" in build
    assert option(build, "--tag") == "dogbreed:latest"
    assert checkout.called("docker", "tag") == [["docker", "tag", "dogbreed:latest", checkout.remote]]
    assert checkout.called("docker", "push") == [["docker", "push", checkout.remote]]
    assert [call[1] for call in checkout.calls if call[1] in ("build", "login", "push")] == ["build", "login", "push"]


def test_the_password_goes_in_on_standard_input_and_nowhere_else(checkout):
    result = checkout.run("--no-build")
    assert result.code == 0, result.err
    assert checkout.called("docker", "login") == [
        ["docker", "login", "--username", "AWS", "--password-stdin", ECR],
    ]
    assert (checkout.bin / "calls").read_text().count(PASSWORD) == 1
    assert f"\n<{PASSWORD}\n" in (checkout.bin / "calls").read_text()
    assert PASSWORD not in result.out + result.err


def test_a_repository_that_exists_is_left_as_it_is(checkout):
    assert checkout.run("--no-build", "--immutable").code == 0
    assert checkout.called("aws", "ecr", "create-repository") == []
    assert checkout.called("aws", "ecr", "put-lifecycle-policy") == []


@pytest.mark.parametrize(
    ("flags", "mutability", "kept"), [([], "MUTABLE", 30), (["--immutable", "--keep", "5"], "IMMUTABLE", 5)]
)
def test_a_missing_repository_is_made_with_scanning_and_a_lifecycle_policy(checkout, flags, mutability, kept):
    checkout.answer("aws-describe-repositories", "An error occurred (RepositoryNotFoundException): no", code=254)
    checkout.answer("docker-image-digests", f"{ECR}/team/dogs@{DIGEST}")
    result = checkout.run("--no-build", "--repository", "team/dogs", *flags)
    assert (result.code, result.out) == (0, f"{ECR}/team/dogs@{DIGEST}\n"), result.err
    (create,) = checkout.called("aws", "ecr", "create-repository")
    assert option(create, "--repository-name") == "team/dogs"
    assert option(create, "--image-scanning-configuration") == "scanOnPush=true"
    assert option(create, "--image-tag-mutability") == mutability
    assert option(create, "--registry-id") == "111122223333"
    (put,) = checkout.called("aws", "ecr", "put-lifecycle-policy")
    (rule,) = json.loads(option(put, "--lifecycle-policy-text"))["rules"]
    assert rule["selection"] == {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": kept}
    assert rule["action"] == {"type": "expire"}


@pytest.mark.parametrize(
    ("answer", "complaint", "said", "not_called"),
    [
        ("aws-describe-repositories", "An error occurred (AccessDeniedException): not yours", "not yours", "create"),
        ("aws-get-login-password", "Unable to locate credentials", "Unable to locate credentials", "docker push"),
        ("docker-login", "Error response from daemon: 400 Bad Request", "logging in to", "docker push"),
        ("docker-manifest", "unauthorized: authentication required", "unauthorized", "docker push"),
        ("docker-push", "denied: tag is immutable", "immutable", "never"),
    ],
)
def test_any_failure_ends_it_and_is_shown(checkout, answer, complaint, said, not_called):
    checkout.answer(answer, complaint, code=1)
    result = checkout.run("--no-build")
    assert result.code == 1
    assert result.out == ""
    assert said in result.err
    assert not [call for call in checkout.calls if not_called in " ".join(call)]


def test_a_repository_whose_policy_is_refused_is_named(checkout):
    checkout.answer("aws-describe-repositories", "RepositoryNotFoundException", code=1)
    checkout.answer("aws-put-lifecycle-policy", "AccessDeniedException", code=1)
    result = checkout.run("--no-build")
    assert result.code == 1
    assert "dogbreed is made, but keeps every image" in result.err
    assert checkout.called("docker", "push") == []


def test_an_image_that_is_not_there_is_named(checkout):
    checkout.answer("docker-image", "Error: No such image: dogbreed:latest", code=1)
    result = checkout.run("--no-build")
    assert result.code == 1
    assert "no image dogbreed:latest to push (Error: No such image: dogbreed:latest)" in result.err


def test_a_build_that_fails_ends_it(checkout):
    checkout.answer("docker-build", "no space left on device", code=1)
    result = checkout.run()
    assert result.code != 0
    assert "no space left on device" in result.err
    assert checkout.called("aws") == checkout.called("docker", "push") == []


def test_what_the_registry_holds_already_is_not_pushed_again(checkout):
    checkout.remote_holds(IMAGE_ID)
    result = checkout.run("--no-build")
    assert (result.code, result.out) == (0, f"{ECR}/dogbreed@{DIGEST}\n")
    assert "nothing to push" in result.err
    assert checkout.called("docker", "push") == []


def test_another_image_under_the_tag_is_replaced(checkout):
    checkout.remote_holds(f"sha256:{'2' * 64}")
    assert checkout.run("--no-build").code == 0
    assert len(checkout.called("docker", "push")) == 1


@pytest.mark.parametrize(
    ("variables", "arguments", "said"),
    [
        ({"AWS_ACCOUNT_ID": ""}, [], "no account: give --account or AWS_ACCOUNT_ID"),
        ({"AWS_ACCOUNT_ID": "123"}, [], "'123' is not 12 digits"),
        ({"AWS_REGION": ""}, [], "no region: give --region or AWS_REGION"),
        ({"AWS_REGION": "Ireland"}, [], "region 'Ireland' is none"),
        ({}, ["--repository", "Dogs"], "repository 'Dogs' is not of lower-case letters"),
        ({}, ["--keep", "0"], "--keep '0' is not a number above 0"),
        ({}, ["--registry"], "--registry needs a value"),
        ({}, ["--regoin", "eu-west-1"], "unknown argument --regoin"),
    ],
)
def test_a_setting_that_is_missing_or_wrong_is_one_line_and_nothing_is_called(checkout, variables, arguments, said):
    result = checkout.run(*arguments, **variables)
    assert result.code == 2
    assert said in result.err
    assert len(result.err.splitlines()) == 1
    assert checkout.calls == []


def test_options_come_before_variables_and_china_has_a_domain_of_its_own(checkout):
    checkout.run("--no-build", "--account", "444455556666", "--region", "cn-north-1")
    (push,) = checkout.called("docker", "push")
    assert push[2] == f"444455556666.dkr.ecr.cn-north-1.amazonaws.com.cn/dogbreed:{checkout.revision}"
    assert {option(call, "--region") for call in checkout.called("aws")} == {"cn-north-1"}


@pytest.mark.parametrize("change", ["tracked", "untracked"])
def test_a_checkout_with_changes_is_refused_unless_allowed(checkout, change):
    name = "Makefile" if change == "tracked" else "new.py"
    with (checkout.folder / name).open("a") as file:
        file.write("\n")
    refused = checkout.run("--no-build")
    assert refused.code == 1
    assert "the checkout has changes (git status): commit them, or give --allow-dirty" in refused.err
    assert checkout.calls == []
    allowed = checkout.run("--no-build", "--allow-dirty")
    assert allowed.code == 0, allowed.err
    assert checkout.called("docker", "push") == [["docker", "push", f"{checkout.remote}-dirty"]]


def test_an_image_of_another_revision_is_refused(checkout):
    checkout.answer("docker-image-revision", "e" * 40)
    result = checkout.run("--no-build")
    assert result.code == 1
    assert f"dogbreed:latest was built from {'e' * 40}, the checkout is at {checkout.revision}" in result.err
    assert checkout.called("docker", "push") == []


def test_another_registry_asks_nothing_of_aws(checkout):
    checkout.answer("docker-image-digests", f"ghcr.io/me/dogbreed@{DIGEST}")
    result = checkout.run("--no-build", "--registry", "ghcr.io/me", AWS_ACCOUNT_ID="", AWS_REGION="")
    assert (result.code, result.out) == (0, f"ghcr.io/me/dogbreed@{DIGEST}\n"), result.err
    assert checkout.called("aws") == checkout.called("docker", "login") == []


@pytest.mark.parametrize("goals", [("push",), ("build", "push"), ("push", "build")])
def test_make_builds_once_and_pushes(checkout, goals):
    result = checkout.run(command=("make", *goals), TAG="dogs:mine")
    assert result.code == 0, result.err
    (build,) = checkout.called("docker", "build")
    assert option(build, "--tag") == "dogs:mine"
    assert checkout.called("docker", "push") == [["docker", "push", checkout.remote]]


def test_the_help_names_every_option(checkout):
    result = checkout.run("--help", AWS_ACCOUNT_ID="")
    assert result.code == 0
    options = ("account", "region", "repository", "registry", "immutable", "keep", "no-build", "allow-dirty")
    assert [name for name in options if f"--{name}" not in result.out] == []


def test_a_cpu_image_has_a_tag_of_its_own(checkout):
    checkout.answer("docker-image-variant", "cpu")
    result = checkout.run("--no-build")
    assert result.code == 0, result.err
    assert checkout.called("docker", "push") == [["docker", "push", f"{checkout.remote}-cpu"]]


def test_the_build_is_given_the_backbones_their_files_and_the_index(checkout):
    given = checkout.folder.parent / "my weights"
    given.mkdir()
    for name in ("resnet50.pth", "densenet121.safetensors", "vgg16.pth"):
        (given / name).write_text(name)
    variables = {"BACKBONES": "resnet50 densenet121", "WEIGHTS_DIR": str(given), "TORCH_INDEX": "https://cpu.example"}
    result = checkout.run("build", command=("make",), **variables)
    assert result.code == 0, result.err
    (build,) = checkout.called("docker", "build")
    assert "BACKBONES=resnet50 densenet121" in build
    assert "TORCH_INDEX=https://cpu.example" in build
    copied = sorted(file.name for file in (checkout.folder / "build" / "weights").iterdir())
    assert copied == ["densenet121.safetensors", "resnet50.pth"]
    assert checkout.run("build", command=("make",)).code == 0
    assert list((checkout.folder / "build" / "weights").iterdir()) == [], "files of the build before are left"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WEIGHTS_DIR": "/nowhere", "BACKBONES": "resnet50"}, "WEIGHTS_DIR=/nowhere is not a folder"),
        ({"WEIGHTS_DIR": "/"}, "WEIGHTS_DIR is given and BACKBONES is not"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused_before_the_build(checkout, variables, said):
    result = checkout.run("build", command=("make",), **variables)
    assert result.code != 0
    assert said in result.err
    assert checkout.called("docker", "build") == []
