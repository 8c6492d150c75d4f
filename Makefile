# make demo   trains, calibrates, evaluates and applies a U-Net on the example cases, and validates its DICOM results
# make test   the tests; make check: style, types and import contracts
# Both start from nothing but Python 3.11 and a package index; a second run reuses .venv.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
DATA ?= ../shared/data

.PHONY: demo test test-slow interop peers-test check format bundles dist clean

$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: $(VENV)/ready
	$(BIN)/monai-unet demo --output demo

test: $(VENV)/ready
	$(BIN)/pytest -m "not slow and not interop"

test-slow: $(VENV)/ready
	$(BIN)/pytest -m "slow and not interop"

# the round trip through Orthanc and dcmtk; installs them if they are absent (as root, on Debian or Ubuntu)
interop: $(VENV)/ready
	tests/interop/install.sh
	$(BIN)/pytest -m interop tests/interop

# the metrics against other packages, in an environment of their own: some ask for older versions than ours
$(PEERS)/ready: pyproject.toml tests/peers/requirements.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check $(TORCH) --editable . --requirement tests/peers/requirements.txt
	touch $@

peers-test: $(PEERS)/ready
	$(PEERS)/bin/pytest tests/peers

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bundles: $(VENV)/ready
	$(BIN)/python tools/make_bundles.py --data $(DATA)

dist: $(VENV)/ready
	rm -rf dist
	$(BIN)/python -m build --quiet --wheel --outdir dist
	$(BIN)/python tools/zip_bundles.py dist

clean:
	rm -rf demo dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
