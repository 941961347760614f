# Everything a person or CI runs. Set-up is part of each target: a hash-locked environment in .venv, built once.
.DEFAULT_GOAL := help
.PHONY: help demo test check e2e soak bench lock clean
MAKEFLAGS += --no-print-directory

# The interpreter to build .venv with; empty: the newest of python3.14 to python3.11 on PATH.
PYTHON ?=
# Arguments for pytest, e.g. make test PYTEST_ARGS='-k kill -x'
PYTEST_ARGS ?=
# Names of benchmarks; empty: all.
BENCH ?=
# make lock UPGRADE=1 takes the newest releases; without it pins move only as far as they must.
UPGRADE ?=

export PYTHON
BIN := .venv/bin
SETUP := @sh requirements/setup.sh
PYTEST := $(BIN)/python -m pytest $(PYTEST_ARGS)
SUITES := $(wildcard $(addprefix tests/,unit architecture properties integration isolation wire conformance examples faults docs))
MIGRATIONS := $(wildcard src/tenantry/storage/migrations/*.sql)
TREES := $(wildcard src tests benchmarks examples requirements)
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
	--custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)
define step
@printf '%-6s %s\n' '$(1)' '$(2)'
endef

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-6s  %s\n", $$1, $$2 }' Makefile

demo: ## the worked fleet on an embedded database: what was allowed, refused, and why
	$(SETUP) test
	@$(BIN)/tenantry demo

test: ## every test that needs nothing but Python packages
	$(SETUP) test
	@$(PYTEST) $(SUITES)

check: ## format, lint, types, layers, migrations, unit and architecture tests
	$(SETUP) dev
	$(call step,check,format)
	@$(BIN)/ruff format --quiet --check $(TREES) || \
		{ $(BIN)/ruff format --check $(TREES) || echo 'remedy: $(BIN)/ruff format .' >&2; exit 1; }
	$(call step,check,lint)
	@$(BIN)/ruff check --quiet $(TREES)
	$(call step,check,types)
	@$(BIN)/mypy
	$(call step,check,layers)
	@$(BIN)/lint-imports --no-logo
	$(call step,check,migrations ($(words $(MIGRATIONS))))
	@$(if $(MIGRATIONS),$(BIN)/squawk $(MIGRATIONS),:)
	$(call step,check,tests)
	@$(PYTEST) -q $(wildcard tests/unit tests/architecture)

e2e: ## the product as a person meets it
	$(SETUP) test
	@if [ -n "$$(find tests/e2e -name 'test_*.py' 2>/dev/null | head -n 1)" ]; then \
		$(PYTEST) tests/e2e; else echo 'e2e    no part exists yet: tests/e2e is empty'; fi

soak: ## long, seeded runs
	$(SETUP) test
	@$(PYTEST) -m soak tests

bench: ## measured ratios, e.g. make bench BENCH=gate.begin_alone
	$(SETUP) dev
	@$(BIN)/python -m benchmarks run $(BENCH)

lock: ## compile requirements/*.in into hash locks
	$(SETUP) dev
	$(call step,lock,requirements/dev.txt)
	@$(COMPILE) --output-file requirements/dev.txt requirements/dev.in
	$(call step,lock,requirements/test.txt)
	@$(COMPILE) --constraint requirements/dev.txt --output-file requirements/test.txt requirements/test.in
	$(call step,lock,requirements/runtime.txt)
	@$(COMPILE) --constraint requirements/dev.txt --output-file requirements/runtime.txt requirements/runtime.in requirements/build.in

clean: ## remove what make made
	@rm -rf .venv .venv.lock .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build
	@find src tests requirements -name __pycache__ -type d -prune -exec rm -rf {} +
	@rm -rf src/*.egg-info
