# Two commands for a newcomer: `make demo` and `make test`. Each sets up its own environment when there is none.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.cka-probe-installed

.PHONY: help setup demo test lint docs bench figures clean

help:
	@echo "make demo     compare two trained networks, distil one from the other, write the figures (5 minutes)"
	@echo "make test     run the tests"
	@echo "make lint     ruff and mypy"
	@echo "make docs     build the documentation into site/"
	@echo "make bench    time and memory beside the peers and the forward pass alone"
	@echo "make figures  remake the paper-style figures"
	@echo "VENV=path reuses an environment; PYTHON=python3.12 chooses the interpreter of a new one"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

# One thread for each of the parallel test processes: more would only wait for each other.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	$(BIN)/mkdocs build --strict --quiet

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[peers]"
	$(BIN)/python benchmarks/compare.py
	$(BIN)/python benchmarks/routes.py
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/distill.py
	$(BIN)/python benchmarks/coverage.py

figures: $(STAMP)
	$(BIN)/python -m figures

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
