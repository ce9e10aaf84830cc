# The one interface. Each target does its own set-up; nothing but Python (3.11 or newer) and make
# needs to be there. PYTHON=... chooses another Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help lab lint test quick notebooks bench float runs seeing consistency format clean

help:
	@echo "make lab        open JupyterLab on the first notebook"
	@echo "make test       all checks: lint, import directions, tests, notebooks, browser"
	@echo "make quick      the checks of an inner loop, under 90 seconds"
	@echo "make notebooks  execute all notebooks in place"
	@echo "make bench      measure speed and memory beside the peers (35 minutes, alone on the machine)"
	@echo "make float      train the float network that the notebooks start from (2 minutes)"
	@echo "make runs       measure again what data/runs holds (five seeds, 2 to 3 minutes each)"
	@echo "make consistency train what notebooks 20, 21 and 25 compare (8 hours), and measure curvature"
	@echo "make seeing     train what notebooks 30 to 34 look at, and measure its curvature (an hour)"

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "qatviz needs Python 3.11 or newer; this is `$(PYTHON) --version`. Try make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "Python could not make a virtual environment (on Debian: apt install python3-venv)"; exit 1; }
	@echo "Installing into $(VENV): about 6 GB, a few minutes the first time."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[all]"
	@touch $(READY)

lab: $(READY)
	$(BIN)/python -m qatviz lab

# One thread per worker: two workers share two cores. Notebooks run at their fast scale.
PYTEST := OMP_NUM_THREADS=1 QATVIZ_SCALE=fast $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint
	$(PYTEST) --nbval-lax tests notebooks

quick: lint
	$(PYTEST) -m "not slow and not browser" tests

notebooks: $(READY)
	$(BIN)/python -m qatviz publish

float: $(READY)
	$(BIN)/python data/make_float.py

runs: $(READY)
	$(BIN)/python data/make_start_here.py

seeing: $(READY)
	$(BIN)/python -m qatviz study studies/seeing_laptop.toml --jobs 2
	$(BIN)/python data/make_seeing.py

CONSISTENCY := why where labels map confirm oscillation strength windows fresh

consistency: $(READY)
	for study in $(CONSISTENCY); do \
	  $(BIN)/python -m qatviz study studies/consistency_$${study}_laptop.toml --jobs 2 --anew || exit 1; done
	$(BIN)/python data/make_consistency.py
	$(BIN)/python data/make_collages.py --jobs 2

bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[all,bench]"
	$(BIN)/python benchmarks/quantizers.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/analysis.py
	$(BIN)/python benchmarks/consistency.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
