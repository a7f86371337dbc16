# Every target sets up what it needs; a second run skips what is there.
VENV ?= .venv
PYTHON ?= python3
MODEL ?= qwen_image_edit
BIN := $(VENV)/bin
NPM_PACKAGES := tests/javascript/node_modules/.installed
# Processes that run unit tests. They mostly wait, so there are more than cores.
WORKERS ?= 3
FUZZ_HOURS ?= 8

# Ray phones home unless told not to.
export RAY_USAGE_STATS_ENABLED = 0
# Python compiles a module when it is imported first, and keeps the result; pip compiles nothing, because most modules
# are never imported. If nothing were kept, each process of the tests would compile torch and Ray again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo serve generators test docs lint types check drill drill-nodes benchmark attacks fuzz clean

help:
	@echo "make demo       start the service, edit the sample photograph, show the result, stop (MODEL=...)"
	@echo "make serve      the service in the foreground, as serve_config.yaml says"
	@echo "make test       all tests"
	@echo "make generators what writes the generated code of the Python client: see CONTRIBUTING.md"
	@echo "make docs       the documentation as a site in out/site; fails on a broken link or a missing page"
	@echo "make lint       lint, format, import contract"
	@echo "make types      types of the service and of the Python client"
	@echo "make check      what CI runs: lint, types, import contract, documentation, all tests"
	@echo "make drill      kill processes that work on 60 requests, and check that no request is lost; 5 minutes at most"
	@echo "make drill-nodes  the same with failing machines (network namespaces; needs root)"
	@echo "make benchmark  latencies of HTTP requests during an edit"
	@echo "make fuzz       random requests, images and LoRA files, for a night: what it did adds up in out/fuzzing (FUZZ_HOURS=8)"
	@echo "make attacks    eleven attacks of one tenant, and the latencies of another; 14 minutes at most"

$(VENV)/.installed: pyproject.toml constraints.txt clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt \
		--editable '.[dev,docs]' --editable 'clients/python[cli]'
	@touch $@

# Programs that tests run. Their versions have nothing to do with those of the service.
$(VENV)/generators/.installed: tests/generators/requirements.txt | $(VENV)/.installed
	$(BIN)/python -m venv $(VENV)/generators
	$(VENV)/generators/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --requirement $<
	@touch $@

# Without npm, the tests that need these packages are skipped; with CI=true they fail.
$(NPM_PACKAGES): tests/javascript/package.json tests/javascript/package-lock.json
	@if command -v npm >/dev/null; then npm ci --prefix tests/javascript --silent --no-audit --no-fund && touch $@; fi

demo: $(VENV)/.installed
	$(BIN)/edits-server demo --model $(MODEL)

serve: $(VENV)/.installed
	$(BIN)/edits-server run serve_config.yaml

generators: $(VENV)/generators/.installed

test: $(VENV)/.installed $(VENV)/generators/.installed $(NPM_PACKAGES)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) tests/unit tests/browser tests/cluster clients/python/tests
	$(BIN)/python -m pytest --numprocesses 2 tests/engine tests/service tests/commands

docs: $(VENV)/.installed
	$(BIN)/python -m tools.build_docs
	@echo "the documentation: out/site/index.html"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed
	$(BIN)/mypy
	$(BIN)/mypy --config-file clients/python/pyproject.toml

check:
	$(MAKE) --jobs 2 types lint docs generators $(NPM_PACKAGES)
	$(MAKE) test

drill: $(VENV)/.installed
	$(BIN)/python -m benchmarks.drill

drill-nodes: $(VENV)/.installed
	$(BIN)/python -m benchmarks.drill.nodes

benchmark: $(VENV)/.installed
	$(BIN)/python benchmarks/http_path.py
	RAY_SERVE_ENABLE_HA_PROXY=1 $(BIN)/python benchmarks/http_path.py

attacks: $(VENV)/.installed
	$(BIN)/python -m benchmarks.attacks

# Each of the counts is a whole: a run that was stopped goes on where it was.
fuzz: $(VENV)/.installed
	$(BIN)/python -m tests.fuzzing images --count 50000 --processes $(WORKERS)
	$(BIN)/python -m tests.fuzzing safetensors --count 20000 --processes $(WORKERS)
	$(BIN)/python -m tests.fuzzing schema --count 20000 --processes $(WORKERS)
	$(BIN)/python -m tests.fuzzing requests --count 1000000 --processes $(WORKERS) --seconds $$(( $(FUZZ_HOURS) * 3600 ))

clean:
	rm -rf $(VENV) data out tests/javascript/node_modules
