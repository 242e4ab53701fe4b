# `make run` and `make test` set everything up on a machine with Python 3.11 and pip.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# The build of PyTorch. On a GPU machine: make TORCH=torch run
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FAST := tests/unit tests/ledger tests/envs tests/engines
NODE := $(VENV)/npm/.ready

.PHONY: run test test-fast test-long lint clean
run: $(READY)
	$(BIN)/trustchain train -c configs/quickstart.yaml $(if $(RUN),--run $(RUN))

test: $(READY) $(NODE)
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

test-fast: $(READY)
	$(BIN)/python -m pytest -m "not slow and not long" -n logical --maxprocesses 4 --dist loadfile $(FAST)

test-long: $(READY) $(NODE)
	$(BIN)/python -m pytest -m long

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy ledger envs trustchain_ray

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# torch first: a plain requirement would take the newest build with several GB of CUDA packages
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# A real EVM node for the tests comes from npm; where that does not work, the tests that need it skip and say so.
$(NODE): Makefile
	@mkdir -p $(@D)
	if command -v npm > /dev/null && npm install --silent --no-audit --no-fund --prefix $(@D) @foundry-rs/anvil@1.7.1; \
	then touch $@; else echo "no EVM node from npm: the tests that need one skip"; fi
