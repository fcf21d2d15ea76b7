# The two commands a newcomer needs are `make demo` and `make test`.

PYTHON ?= python3
# What pip is given for torch; another build or index can be named here.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
# What `make bench` measures beside longhaul: a checkout of the published LRURec code, and the
# interpreters of environments with RecTools and with RecBole (and for the checkout, if not ours).
LRUREC ?=
LRUREC_PYTHON ?=
RECTOOLS ?=
RECBOLE ?=

.PHONY: demo test test-all lint format bench clean

# torch goes first and pinned: any other package would pull in its newest build and all of CUDA.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

# The whole chain on a log whose best possible model is known.
demo: $(VENV)/installed
	rm -rf $(DEMO)
	$(BIN)/longhaul synth $(DEMO)/log
	$(BIN)/longhaul prepare $(DEMO)/log/events.parquet --output $(DEMO)/data --timestamp timestamp
	$(BIN)/longhaul train configs/demo.yaml runs=$(DEMO)/runs data.path=$(DEMO)/data
	$(BIN)/longhaul evaluate $(DEMO)/runs/demo --baselines --truth $(DEMO)/log/truth.json
	$(BIN)/longhaul recommend $(DEMO)/runs/demo --output $(DEMO)/few.parquet --user 1 --user 2 --user 3
	$(BIN)/longhaul report $(DEMO)/runs/demo --output $(DEMO) --examples 3

# Ray clusters of one machine get into each other's way, so the tests that start one come one by one.
test: lint
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow and not ray"
	$(BIN)/pytest -m "ray and not slow"

test-all: lint
	$(BIN)/pytest -n 2 --dist worksteal -m "not ray"
	$(BIN)/pytest -m ray

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.bench --published "$(LRUREC)" \
		--published-python "$(LRUREC_PYTHON)" --rectools "$(RECTOOLS)" --recbole "$(RECBOLE)"

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache
