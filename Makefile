# The one door: every chore of the project is a target here, and CI calls nothing else.
# Writes only to build/ and .venv/. Variables are given on the command line: make train DATA=photos HP="lr=0.01"

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# What users give; documented in `help`.
DATA ?=
WEIGHTS ?=
ML ?= build/ml
HP ?=
PORT ?= 8080
IMAGE ?=
TAG ?= dogbreed:latest
BACKBONES ?=
WEIGHTS_DIR ?=
TORCH_INDEX ?=
TRIALS ?= 20
TUNE_FLAGS ?=
# Of local-train and local-serve: `python -m local_test train --help` and `serve --help` list them; --gpus is one.
TRAIN_FLAGS ?=
SERVE_FLAGS ?=
# Of every bench-NAME: `.venv/bin/python benchmarks/NAME.py --help` lists them.
BENCH_FLAGS ?=
# For the engine: DOCKER_BUILD_FLAGS="--network host".
DOCKER_BUILD_FLAGS ?=
# Passed by environment, so that blanks and quotes in a value survive.
export DATA WEIGHTS ML HP PORT IMAGE TAG BACKBONES WEIGHTS_DIR TORCH_INDEX DOCKER_BUILD_FLAGS

# The first Python 3.11 found; any path may be given.
PYTHON ?= $(shell for name in python3.11 python3 python; do $$name -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$name && break; done || echo python3.11)
REVISION := $(shell git describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null || echo unknown)

BIN := .venv/bin
CACHE := $(CURDIR)/build/cache
INSTALLED := .venv/.installed
SCRIPTS := container/train container/serve
SHELL_SCRIPTS := $(wildcard .ci/run local_test/*.sh scripts/*.sh)

# pip compiled what it installed; our own modules are few and leave no __pycache__ in the checkout.
export PYTHONDONTWRITEBYTECODE := 1
export HYPOTHESIS_STORAGE_DIRECTORY := $(CACHE)/hypothesis
export DOCKER_BUILDKIT := 1

.PHONY: help install demo train tune serve predict evaluate curate test lint fmt lock build push stack \
  local-train local-serve test-image conformance bench-training bench-loader bench-passes bench-memory bench-serving \
  bench-insight bench-tuning bench-unknown bench-curation clean

help: ## Print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  DATA     folder with train, valid and test, or with one folder per class'
	@echo '  WEIGHTS  state-dict file of the backbone'
	@echo '  HP       hyperparameters, "model=resnet18 lr=0.01"'
	@echo '  TRIALS   of tune: $(TRIALS)'
	@echo '  ML       stands for /opt/ml: $(ML)'
	@echo '  PORT     of the server: $(PORT)'
	@echo '  IMAGE    photo for predict'
	@echo '  TAG      Docker image: $(TAG)'
	@echo '  BENCH_FLAGS of bench-NAME; benchmarks/NAME.py --help lists them'
	@echo '  TRAIN_FLAGS, SERVE_FLAGS of local-train and local-serve, such as --gpus: docs/local-platform.md'
	@echo '  SUBJECT  of conformance: process (this checkout) or image (TAG)'
	@echo '  BACKBONES, WEIGHTS_DIR, TORCH_INDEX of build: docs/image.md'

install: $(INSTALLED) ## Make .venv with everything, as the lock says; needs Python 3.11 and a C compiler

# An environment without pip is what is left of one that could not be made; it is made anew.
$(INSTALLED): requirements/dev.txt pyproject.toml
	@python=$$([[ -x $(BIN)/pip ]] && echo $(BIN)/python || echo '$(PYTHON)'); \
	version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || version='no Python'; \
	if [[ $$version != 3.11 ]]; then \
	  echo "dogbreed needs Python 3.11 (smdebug imports distutils, which 3.12 removed); $$python is $$version." \
	    "Remove .venv if that is it, and name another: make install PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi
	@[[ -x $(BIN)/pip ]] || '$(PYTHON)' -m venv --clear .venv
	@echo "installing requirements/dev.txt into .venv: several GB the first time, for some minutes"
# uv, where there is one, fetches and unpacks several packages at a time; it may not know the index that pip knows.
	@{ command -v uv >/dev/null && uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt \
	    && { $(BIN)/python -m compileall -qq -j 0 .venv/lib || true; }; } || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt || \
	  { echo "installing failed, see above; pyinstrument-cext is compiled here, which needs a C compiler and Python's" \
	    "headers (Debian: apt-get install gcc python3-dev)" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
# setuptools leaves its working copy of what it has just put into .venv.
	@rm -rf container/dogbreed.egg-info
	@touch $@

demo: $(INSTALLED) ## Draw a data set, train on it, serve the model and ask it something: a minute or two
	@local_test/demo.sh

RESULTS = ls '$(ML)/model/bundle.json' '$(ML)/output/data/insight/report.html' 2>/dev/null || true
train: $(INSTALLED) ## Train on DATA (WEIGHTS, HP); the bundle is in ML/model
	@local_test/train_local.sh
	@$(RESULTS)

# The same command again goes on with a search that was ended; NAME is another one.
NAME ?= tune
tune: $(INSTALLED) ## Search hyperparameters on DATA (WEIGHTS, HP, TRIALS, NAME, TUNE_FLAGS); ends with the best of them
	@[[ -n "$$DATA" ]] || { echo "name the photos: make tune DATA=folder/with/train/valid/test" >&2; exit 1; }
	@$(BIN)/python scripts/launch.py tune --local --data "$$DATA" --trials $(TRIALS) --name '$(NAME)' \
	  $(if $(WEIGHTS),--weights "$$WEIGHTS") $(if $(HP),--hp $$HP) $(TUNE_FLAGS)

serve: $(INSTALLED) ## Serve ML/model on 127.0.0.1:PORT
	@local_test/serve_local.sh

predict: ## Send the photo IMAGE to the server on PORT
	@local_test/predict.sh "$$IMAGE"

MODEL ?= $(ML)/model
EVALUATE_FLAGS ?=
evaluate: $(INSTALLED) ## Measure MODEL, which is ML's bundle, on the labelled folder DATA (EVALUATE_FLAGS)
	@[[ -n "$$DATA" ]] || { echo "name the photos: make evaluate DATA=folder/with/one/folder/per/class" >&2; exit 1; }
	@$(BIN)/python scripts/launch.py evaluate "$$DATA" --model '$(MODEL)' $(EVALUATE_FLAGS)

CURATE_FLAGS ?=
curate: $(INSTALLED) ## List label errors, copies and classes to merge in DATA, by the features of MODEL (CURATE_FLAGS)
	@[[ -n "$$DATA" ]] || { echo "name the photos: make curate DATA=folder/with/train/valid/test" >&2; exit 1; }
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m dogbreed.curation "$$DATA" --model '$(MODEL)' --cache $(CACHE)/features $(CURATE_FLAGS)

test: $(INSTALLED) ## Run the unit, contract, launcher and, where there is a Chromium, browser tests
# A worker more than there are CPUs: a fifth of the time goes to servers and jobs that are waited for.
	@workers=$$($(BIN)/python -c 'import os; print((os.cpu_count() or 1) + 1)'); \
	$(BIN)/pytest -q -n "$$workers" tests/unit tests/contract tests/launch tests/browser

lint: $(INSTALLED) ## Check style, types, architecture, shell scripts, Dockerfile and spelling; says nothing when all is well
	@$(BIN)/ruff check --quiet . $(SCRIPTS)
	@$(BIN)/ruff format --quiet --check . $(SCRIPTS)
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/mypy --no-error-summary local_test
	@report=$$($(BIN)/lint-imports --no-logo --cache-dir $(CACHE)/import-linter 2>&1) || { echo "$$report"; exit 1; }
	@$(BIN)/shellcheck $(SHELL_SCRIPTS)
	@$(BIN)/hadolint container/Dockerfile
	@$(BIN)/cfn-lint infrastructure/*.yaml
	@$(BIN)/codespell

fmt: $(INSTALLED) ## Format, and mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix . $(SCRIPTS)
	@$(BIN)/ruff format --quiet . $(SCRIPTS)

LOCK := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url -q
lock: ## Resolve pyproject.toml into requirements/ anew; needs uv
	@command -v uv >/dev/null || { echo "make lock needs uv: https://docs.astral.sh/uv/" >&2; exit 1; }
	$(LOCK) pyproject.toml -o requirements/runtime.txt
	$(LOCK) pyproject.toml -c requirements/runtime.txt -o requirements/cpu.txt \
	  $$(sed -nE 's/^((nvidia|cuda)-[a-z0-9-]+|triton|torch|torchvision)==.*/--no-emit-package \1/p' requirements/runtime.txt)
	$(LOCK) --group launch -c requirements/runtime.txt -o requirements/launch.txt
	$(LOCK) pyproject.toml --group dev --group launch -c requirements/runtime.txt -c requirements/launch.txt \
	  -o requirements/dev.txt

# The builder sees only what is below this folder, so that files of weights from elsewhere are copied here.
GIVEN := build/weights
build: ## Build the image TAG (BACKBONES, WEIGHTS_DIR, TORCH_INDEX, DOCKER_BUILD_FLAGS)
	@rm -rf $(GIVEN); mkdir -p $(GIVEN)
	@[[ -z "$$WEIGHTS_DIR" || -d "$$WEIGHTS_DIR" ]] || \
	  { echo "WEIGHTS_DIR=$$WEIGHTS_DIR is not a folder" >&2; exit 1; }
	@[[ -z "$$WEIGHTS_DIR" || -n "$$BACKBONES" ]] || \
	  { echo "WEIGHTS_DIR is given and BACKBONES is not: name what to put into the image" >&2; exit 1; }
	@for name in $${WEIGHTS_DIR:+$$BACKBONES}; do \
	  for file in "$$WEIGHTS_DIR/$$name".{pth,pt,safetensors}; do [[ ! -f $$file ]] || cp "$$file" $(GIVEN)/; done; \
	done
	docker build $(DOCKER_BUILD_FLAGS) --file container/Dockerfile --build-arg REVISION=$(REVISION) \
	  --build-arg BACKBONES="$$BACKBONES" --build-arg TORCH_INDEX="$$TORCH_INDEX" --tag '$(TAG)' .

# `make build push` builds once; the rest is in the script, which is used without make as well.
PUSH_FLAGS ?=
push: $(filter build,$(MAKECMDGOALS)) ## Build the image and put it into ECR or another registry (PUSH_FLAGS)
	@scripts/build_and_push.sh $(if $(filter build,$(MAKECMDGOALS)),--no-build) $(PUSH_FLAGS)

STACK ?= dogbreed
# --no-execute-changeset: show what would be made or changed, and leave it; --parameter-overrides KeepImages=50
STACK_FLAGS ?=
OUTPUTS := Stacks[0].Outputs[].[join(`=`, [Description, OutputValue])]
stack: ## Make or change bucket, repository and role in AWS, as STACK (STACK_FLAGS)
	aws cloudformation deploy --stack-name '$(STACK)' --template-file infrastructure/dogbreed.yaml \
	  --capabilities CAPABILITY_IAM --no-fail-on-empty-changeset $(STACK_FLAGS)
ifeq ($(filter --no-execute-changeset,$(STACK_FLAGS)),)
	@AWS_PAGER= aws cloudformation describe-stacks --stack-name '$(STACK)' --query '$(OUTPUTS)' --output text | \
	  sed 's/^/export /'
endif

local-train: $(INSTALLED) ## The same as train, in the image TAG, as SageMaker would run it (TRAIN_FLAGS)
	@[[ -n "$$DATA" ]] || { echo "name the photos: make local-train DATA=folder/with/train/valid/test" >&2; exit 1; }
	@$(BIN)/python -m local_test train --image '$(TAG)' --data "$$DATA" $(if $(WEIGHTS),--channel pretrained="$$WEIGHTS") \
	  --hp "$$HP" --warm-pool $(CACHE)/features --results "$$ML" $(TRAIN_FLAGS)
	@$(RESULTS)

local-serve: $(INSTALLED) ## The same as serve, in the image TAG, and InvokeEndpoint on port 8000 (SERVE_FLAGS)
	@local_test/require_bundle.sh "$$ML" local-train
	@$(BIN)/python -m local_test serve local --image '$(TAG)' --model "$$ML/model" --direct "$$PORT" \
	  --env DOGBREED_PAGE=true $(SERVE_FLAGS)

# CHECK_FLAGS: python -m local_test check --help lists them.
SUBJECT ?= process
CHECK_FLAGS ?=
REPORT = build/conformance/$(SUBJECT)
conformance: $(INSTALLED) ## Hold SUBJECT (process, or image TAG) to SageMaker's container contract; reports in build/conformance
	@case '$(SUBJECT)' in process|image) ;; *) echo "SUBJECT=$(SUBJECT) is neither process nor image" >&2; exit 1 ;; esac
	@$(BIN)/python -m local_test check $(if $(filter image,$(SUBJECT)),--image '$(TAG)',--process) --junit $(REPORT).xml \
	  --json $(REPORT).json --markdown $(REPORT).md $(CHECK_FLAGS)

test-image: $(INSTALLED) ## Build the image and test it with a real Docker engine
	@$(BIN)/pytest -q -m docker -rs -n 2 --dist loadfile --no-loadscope-reorder tests/container

bench-training: $(INSTALLED) ## Compare training with the plain loop on DATA (WEIGHTS of mobilenet_v2), some minutes
	@[[ -n "$$DATA" ]] || { echo "name the photos: make bench-training DATA=folder/with/train/valid/test" >&2; exit 1; }
	@$(BIN)/python benchmarks/training.py --data "$$DATA" $(if $(WEIGHTS),--weights mobilenet_v2="$$WEIGHTS") $(BENCH_FLAGS)

bench-loader: $(INSTALLED) ## Compare loading images with the plain loader on DATA, some minutes
	@[[ -n "$$DATA" ]] || { echo "name the photos: make bench-loader DATA=folder/with/train" >&2; exit 1; }
	@$(BIN)/python benchmarks/loader.py --data "$$DATA" $(BENCH_FLAGS)

bench-passes: $(INSTALLED) ## Compare the frozen pass and a step of fine-tuning with what is possible, on DATA, some minutes
	@[[ -n "$$DATA" ]] || { echo "name the photos: make bench-passes DATA=folder/with/train" >&2; exit 1; }
	@OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/passes.py --data "$$DATA" $(BENCH_FLAGS)

bench-memory: $(INSTALLED) ## Show how a job's memory grows with the number of images, on DATA, some minutes
	@[[ -n "$$DATA" ]] || { echo "name the photos: make bench-memory DATA=folder/with/train" >&2; exit 1; }
	@$(BIN)/python benchmarks/memory.py --data "$$DATA" $(BENCH_FLAGS)

# A quick look; for figures to be told: BENCH_FLAGS="--rounds 5 --seconds 10 --rates 0.5 0.7 0.9 3".
bench-serving: $(INSTALLED) ## Compare the server with others (BENCH_FLAGS; benchmarks/serving.py --help), some minutes
	@PYTHONPATH='$(CURDIR)/container' $(BIN)/python benchmarks/serving.py $(BENCH_FLAGS)

bench-insight: $(INSTALLED) ## Compare epochs with insight and without on DATA (WEIGHTS of mobilenet_v2), some minutes
	@[[ -n "$$DATA" ]] || { echo "name the photos: make bench-insight DATA=folder/with/train/valid/test" >&2; exit 1; }
	@$(BIN)/python benchmarks/insight.py --data "$$DATA" $(if $(WEIGHTS),--weights mobilenet_v2="$$WEIGHTS")

bench-tuning: $(INSTALLED) ## Compare 20 trials with one job and with plain runs on DATA (WEIGHTS of mobilenet_v2), some minutes
	@[[ -n "$$DATA" && -n "$$WEIGHTS" ]] || { echo "name photos and weights: make bench-tuning DATA=photos WEIGHTS=mobilenet_v2.pth" >&2; exit 1; }
	@$(BIN)/python benchmarks/tuning.py --data "$$DATA" --weights mobilenet_v2="$$WEIGHTS" $(BENCH_FLAGS)

bench-unknown: $(INSTALLED) ## Compare scores that tell unknown images, on DATA with WEIGHTS of mobilenet_v2, some minutes
	@[[ -n "$$DATA" && -n "$$WEIGHTS" ]] || { echo "name both: make bench-unknown DATA=folder/with/train/valid/test WEIGHTS=mobilenet_v2.pth" >&2; exit 1; }
	@$(BIN)/python benchmarks/unknown.py --data "$$DATA" --weights "$$WEIGHTS" $(BENCH_FLAGS)

bench-curation: $(INSTALLED) ## Show what curation finds of errors planted in DATA, by the features of MODEL, some minutes
	@[[ -n "$$DATA" ]] || { echo "name the photos: make bench-curation DATA=folder/with/train/valid/test" >&2; exit 1; }
	@$(BIN)/python benchmarks/curation.py --data "$$DATA" --model '$(MODEL)' $(BENCH_FLAGS)

clean: ## Remove build/; .venv stays
	rm -rf build
