# Everything a contributor runs. `make` alone prints this list.
.DEFAULT_GOAL := help
.PHONY: help install demo test test-exhaustive cluster test-cluster test-images images lint format protos protos-check chart bench clean
MAKEFLAGS += --no-print-directory

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BUF_VERSION := 1.75.0
BUF := .cache/buf/node_modules/.bin/buf
SOURCES := libs kernels operator client simulator services/gateway services/kv_store services/lora_registry services/model_worker services/tokenizer tests tools benchmarks
# Which tests of images: all but the worker's, since that is 5 GB.
IMAGES ?= images and not slow
IMAGE_PREFIX ?= shoal/
IMAGE_TAG ?= 0.1.0
# A folder named like a standard module (operator/) must never come first on sys.path.
export PYTHONSAFEPATH := 1

help: ## Print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or run make PYTHON=python3.x"; exit 1; }
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing Shoal and its dependencies (3 GB to fetch and 7 GB in $(VENV) with the default PyTorch wheel; see README for the CPU build)"
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[local,dev]'
	@touch $@

install: $(STAMP) ## Make .venv and install everything into it

demo: $(STAMP) ## Serve a real model, chat with it over gRPC and HTTP, print a table, stop
	@$(BIN)/shoal demo -f examples/smollm2-135m.yaml

test: $(STAMP) ## Run every test that needs neither a GPU nor a cluster
	@$(BIN)/python -m pytest -m 'not gpu and not cluster and not images and not exhaustive' $(PYTEST_ARGS)

test-exhaustive: $(STAMP) ## Run every case of what `make test` and `make test-cluster` sample: some five minutes
	@PYTHONPATH=tests $(BIN)/python -m support.control_plane.main --build-only
	@$(BIN)/python -m pytest -m 'exhaustive and not gpu' $(PYTEST_ARGS)

cluster: $(STAMP) ## Run a Kubernetes control plane to try things on, until Ctrl-C; pods only pretend to run
	@PYTHONPATH=tests $(BIN)/python -m support.control_plane.main

test-cluster: $(STAMP) ## Run the tests that need a Kubernetes API server (built from Go modules first: once, some ten minutes)
	@PYTHONPATH=tests $(BIN)/python -m support.control_plane.main --build-only
	@$(BIN)/python -m pytest -m 'cluster and not exhaustive' $(PYTEST_ARGS)

test-images: $(STAMP) ## Install what each image holds into an empty folder and start it; the worker's 5 GB with IMAGES=images
	@$(BIN)/python -m pytest -m "$(IMAGES)" tests/integration/images $(PYTEST_ARGS)

images: ## Build the images of all services with docker, as $(IMAGE_PREFIX)NAME:$(IMAGE_TAG)
	@for file in images/*.Dockerfile; do \
	  name=$$(basename $$file .Dockerfile); echo "building $(IMAGE_PREFIX)$$name:$(IMAGE_TAG)"; \
	  docker build -q -f $$file -t $(IMAGE_PREFIX)$$name:$(IMAGE_TAG) \
	    --build-arg SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(IMAGE_ARGS) . || exit 1; \
	done

lint: $(STAMP) $(BUF) protos-check ## Check style, types, layers and protos
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(SOURCES)
	@$(BIN)/lint-imports
	@cd protos && ../$(BUF) lint

format: $(STAMP) ## Fix what can be fixed by itself
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

protos: $(STAMP) ## Regenerate protos/gen
	@$(BIN)/python tools/generate_protos.py

protos-check: $(STAMP) ## Fail if protos/gen is out of date
	@$(BIN)/python tools/generate_protos.py --check

chart: $(STAMP) ## Regenerate what charts/shoal takes from the source: CRD, rights, dashboards
	@$(BIN)/python tools/generate_chart.py

bench: $(STAMP) ## Measure engine, gateway and mesh on this machine (about ten minutes)
	@mkdir -p .cache/bench
	@$(BIN)/python benchmarks/engine.py --device cpu --json .cache/bench/engine.json
	@$(BIN)/python benchmarks/gateway.py --json .cache/bench/gateway.json
	@$(BIN)/python benchmarks/mesh.py --json .cache/bench/mesh.json

$(BUF):
	@command -v npm >/dev/null || { echo "npm not found: it brings buf, the proto linter (Debian: apt-get install npm)"; exit 1; }
	@npm install --silent --no-save --no-package-lock --prefix .cache/buf @bufbuild/buf@$(BUF_VERSION)

clean: ## Remove what make made
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
