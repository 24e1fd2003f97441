# New here? Run `make demo` or `make test`. Both create the environment if there is none.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.cka-probe-installed

.PHONY: help setup demo test lint docs bench study gpu figures figures-dense clean

help:
	@echo "make demo     train a teacher and its students, compare them layer by layer, draw figures/demo (3 minutes)"
	@echo "make test     run the tests"
	@echo "make lint     ruff and mypy"
	@echo "make docs     build the documentation into site/"
	@echo "make bench    time and memory, compared with peers and with the forward pass alone"
	@echo "make study    students of every method on Fashion-MNIST; stop and go on at any time (a day on one core)"
	@echo "make gpu      tests and benchmark on an NVIDIA GPU; with VENV= (empty) PYTHON runs without an environment"
	@echo "make figures  draw the figures in the style of the paper again"
	@echo "make figures-dense  train the detectors and segmenters of figures/README.md again and draw their figures"
	@echo "VENV=path uses that environment; PYTHON=python3.12 chooses the interpreter of a new one"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

# One thread per test process: more threads would wait for each other.
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
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/estimators_of_all.py
	$(BIN)/python benchmarks/routes.py
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/distill.py
	$(BIN)/python benchmarks/coverage.py

# JOBS=2 on two idle cores. OMP_NUM_THREADS: two threads beside a busy core are slower than one.
JOBS ?= 1
study: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/study.py --jobs $(JOBS)
	$(BIN)/python benchmarks/study_tables.py
	$(BIN)/python -m figures study

# The benchmark runs even if a test fails: a GPU may be available for minutes only. OUTPUT=folder is for the table.
OUTPUT ?= benchmarks/results
gpu: $(if $(VENV),$(STAMP))
	status=0; export PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH}; \
	$(if $(VENV),$(BIN)/python,$(PYTHON)) -m pytest tests/gpu -q --durations=5 || status=1; \
	$(if $(VENV),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py --output $(OUTPUT) || status=1; \
	exit $$status

figures: $(STAMP)
	$(BIN)/python -m figures

figures-dense: $(STAMP)
	$(BIN)/python -m figures --fresh detections

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
