# Two commands matter: `make demo` and `make test`. Each sets up what it needs, once.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV ?= $(shell command -v uv || echo .cache/uv/bin/uv)
export UV

.PHONY: help
help: ## Say what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

.PHONY: init
init: $(READY) ## Make the locked Python environment

.cache/uv/bin/uv:
	@echo "[gpusession] no uv on PATH: installing the pinned one into .cache/uv ..." >&2
	@$(PYTHON) -m venv .cache/uv
	@.cache/uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt

$(READY): requirements/dev.txt pyproject.toml | $(UV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; say which with make PYTHON=...")'
	@echo "[gpusession] making the Python environment in $(VENV) ..." >&2
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	@$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: assets
assets: $(READY) ## Find or build Kubernetes, Redis, a C compiler (minutes on a cold machine)
	@$(BIN)/python -m tests.support.assets

.PHONY: demo
demo: assets ## 14 Sessions, their clients, two simulated nodes, live; KEEP=1 leaves it up, PICTURE=x.svg draws it
	@$(BIN)/python -m tests.demo $(if $(KEEP),--keep) $(if $(PICTURE),--picture $(PICTURE))

.PHONY: test
test: test-unit test-integration ## All tests

.PHONY: test-unit
test-unit: $(READY) ## Pure rules and small parts: no sockets, under 10 s
	@$(BIN)/pytest tests/unit

.PHONY: test-assets
test-assets: assets ## What the tests need beside: Helm and kstatus, built once per machine
	@$(BIN)/python -m tests.support.helm_tool
	@$(BIN)/python -m tests.support.kstatus_tool

.PHONY: test-integration
test-integration: test-assets ## Real apiserver, Redis, processes, simulated NVML; JOBS=n modules side by side
	@$(BIN)/pytest $(if $(JOBS),-n $(JOBS) --dist loadfile,) tests/integration tests/e2e

.PHONY: test-again
test-again: test-assets ## Those of test-integration that failed the last time, one by one
	@$(BIN)/pytest --last-failed --last-failed-no-failures none --maxfail 3 tests/integration tests/e2e

.PHONY: bench
bench: assets ## BENCH=heartbeats|expiry|reach|steady, ROUNDS=n: measures, prints a table; JSON is named on the last line
	@$(BIN)/python -m tests.bench $(if $(ROUNDS),--rounds $(ROUNDS)) $(BENCH)

.PHONY: secrets
secrets: ## Print the Secrets of an installation; OPTIONS="--redis", or what else manifests/secrets.sh takes
	@manifests/secrets.sh $(OPTIONS)

.PHONY: image
image: $(READY) ## The image localhost/gpusession:dev and its tar in dist/; BASE=debian needs no registry
	@$(BIN)/python -m tests.support.image $(if $(BASE),--base $(BASE))

.PHONY: test-image
test-image: $(READY) ## Build the image from Debian packages and look into it (root)
	@$(BIN)/pytest tests/cluster/test_image.py

.PHONY: cluster-packages
cluster-packages: $(READY) ## Install the Debian packages of a real node (root)
	@$(BIN)/python -m tests.cluster packages

.PHONY: cluster-up
cluster-up: cluster-packages assets ## A real two-node Kubernetes on this machine: kubelets, containerd (root)
	@$(BIN)/python -m tests.cluster up

.PHONY: cluster-down
cluster-down: $(READY) ## Take it down, from any shell; nothing stays
	@$(BIN)/python -m tests.cluster down

.PHONY: test-cluster
test-cluster: cluster-packages assets ## Stories on the real cluster, tests of the image; PYTEST=... (root)
	@why="$$($(BIN)/python -m tests.cluster obstacles)"; \
	if [ -n "$$why" ]; then echo "[gpusession] no real cluster on this machine: $$why" >&2; exit 1; fi
	@$(CLUSTER_STORIES) $(PYTEST)

# A cache of its own: test-integration may run beside it, and note its failures.
CLUSTER_STORIES = $(BIN)/pytest tests/cluster -o cache_dir=.pytest_cache/cluster \
  --verbose --capture=no --durations=0 --durations-min=2

.PHONY: test-cluster-again
test-cluster-again: ## Those stories that failed the last time; all where it did not come so far
	@$(MAKE) --no-print-directory test-cluster PYTEST="--last-failed --maxfail 3"

.PHONY: check
check: $(READY) ## Lint, format, types, import layers, spelling, sizes
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/codespell
	@$(BIN)/python -m tests.support.sizes

.PHONY: fix
fix: $(READY) ## Format, and mend what ruff can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

.PHONY: lock
lock: | $(UV) ## Resolve requirements/*.txt anew from pyproject.toml; no addresses, all hashes
	@for group in dev go cc uv cluster runtime; do \
	  case $$group in \
	    dev) args="pyproject.toml --group dev" ;; \
	    runtime) args="pyproject.toml --constraints requirements/dev.txt" ;; \
	    *) args="--group pyproject.toml:$$group" ;; \
	  esac; \
	  $(UV) pip compile --quiet --universal --generate-hashes --no-header --python-version 3.11 \
	    $$args -o requirements/$$group.txt; \
	done

.PHONY: clean
clean: ## Remove the environment and everything built in this folder
	@rm -rf $(VENV) .cache dist
