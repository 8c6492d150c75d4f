# make demo   trains, calibrates, evaluates and applies a U-Net on the example cases, and validates its DICOM results
# make test   the tests; make test-changed: those that a change touches; make check: style, types and import contracts
# Both start from nothing but Python 3.11 and a package index; a second run reuses .venv.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
DEPLOY := .venv-deploy
DATA ?= ../shared/data

# tests start hundreds of programs, and none should compile our modules anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-changed test-slow minutes interop mlops-test game-day life-cycle-demo faults deploy-test peers-test benchmarks gpu-test performance check format networks bundles dist clean

$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

# EPOCHS=1: a shorter training; OUTPUT=FOLDER: another folder than demo/, such as for a training of another length
demo: $(VENV)/ready
	$(BIN)/monai-unet demo --output "$(or $(OUTPUT),demo)" $(if $(EPOCHS),--epochs $(EPOCHS))

# seconds of each item, from which `make minutes` makes its tables
NOTED = --junitxml=build/tests/$@.xml

# half as many processes again as there are cores, since many tests wait, with one thread in each and in the programs that they start;
# the tests of a file stay together, so that they share what they make
test test-changed test-slow: export OMP_NUM_THREADS = 1
PROCESSES = $(shell $(BIN)/python -c "import os; print(max(2, 3 * os.cpu_count() // 2))")
OF_OTHER_SUITES = interop or faults or deploy or mlops or game_day
test: $(VENV)/ready
	$(BIN)/pytest $(NOTED) -n $(PROCESSES) --dist worksteal -m "not (slow or $(OF_OTHER_SUITES))"

# of `make test` those whose Python code has changed since this last ran, by pytest-testmon; the first time all; CONTRIBUTING.md says when
# that is enough
test-changed: $(VENV)/ready
	$(BIN)/pytest --testmon --testmon-forceselect -n $(PROCESSES) --dist worksteal -m "not (slow or $(OF_OTHER_SUITES))"

test-slow: $(VENV)/ready
	$(BIN)/pytest $(NOTED) -n $(PROCESSES) --dist worksteal -m "slow and not ($(OF_OTHER_SUITES))"

# the round trip through Orthanc and dcmtk, PixelMed's validators, OHIF and the review page in Chromium; installs them if they are absent (root, Debian)
interop: $(VENV)/ready
	tests/interop/install.sh
	$(BIN)/pytest $(NOTED) -m interop tests/interop tests/review

# alerts, boards and what they ask of a node, with Prometheus and Alertmanager; installs what they need
mlops-test: $(VENV)/ready
	tests/interop/install.sh
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement ops/requirements.txt
	$(BIN)/pytest $(NOTED) -m mlops tests/mlops

# a model's life with real parts, from the first training to drift, and the pictures of docs/how-to/life-cycle.md; less than an hour
life-cycle-demo: $(VENV)/ready
	tests/interop/install.sh
	$(BIN)/python benchmarks/life_cycle_demo.py

# failures played against a live node: do the alerts fire, do their runbooks help, is nothing lost?
game-day: $(VENV)/ready
	tests/interop/install.sh
	$(BIN)/pytest $(NOTED) -m game_day tests/mlops

# a node whose parts are killed, whose disk is filled and whose PACS goes away; some minutes (FAULT_ROUNDS kills of a stand-in for the
# worker, 100; REAL_FAULT_ROUNDS with the real worker, 10; REAL_SOAK_MINUTES of studies through the real worker, 0)
faults: $(VENV)/ready
	$(BIN)/pytest $(NOTED) -m faults tests/faults

# the metrics against other packages: some ask for older versions than ours, which are installed in an environment of their own, before
# the packages of .venv; nnU-Net without what it asks for and does not import
$(PEERS)/ready: $(VENV)/ready tests/peers/requirements.txt benchmarks/nnunet.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(BIN)/python -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" > \
		$$(echo $(PEERS)/lib/python*/site-packages)/packages_of_venv.pth
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check $(TORCH) --requirement tests/peers/requirements.txt
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement benchmarks/nnunet.txt
	touch $@

peers-test: $(PEERS)/ready
	$(PEERS)/bin/python -m pytest $(NOTED) tests/peers

# the rendered MONAI Deploy package, run with the SDK at its real paths, in an environment of its own (root, for its namespace)
$(DEPLOY)/ready: tests/deploy/requirements.txt monai_unet_app/deploy/templates/requirements.txt
	test -x $(DEPLOY)/bin/python || $(PYTHON) -m venv $(DEPLOY)
	$(DEPLOY)/bin/pip install --quiet --disable-pip-version-check --requirement tests/deploy/requirements.txt
	touch $@

deploy-test: $(DEPLOY)/ready
	$(DEPLOY)/bin/python -m pytest $(NOTED) -m deploy tests/deploy

# a short form of each benchmark, which fails far below its claim; some minutes
benchmarks: $(VENV)/ready
	$(BIN)/python benchmarks/run.py --short

# engines on a GPU beside the CPU, and docs/gpu.md from it; left out where torch finds no CUDA device
gpu-test: $(VENV)/ready
	$(BIN)/python benchmarks/gpu.py

# every benchmark with its peers, and docs/performance.md from what they print; some hours on a quiet machine
performance: $(VENV)/ready
	$(BIN)/python benchmarks/run.py --data $(DATA)

# minutes by suite and folder and the 30 slowest items, of the suites that ran last
minutes:
	@$(PYTHON) tools/test_minutes.py build/tests

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the networks of the family for the same time on the same cases, docs/networks.md; some hours on a quiet machine, goes on where it was ended
networks: $(VENV)/ready
	$(BIN)/python benchmarks/networks.py --data $(DATA)/msd_hippocampus

# the commands on the cards of our bundles; QUICK=1: with tiny networks on example cases, in minutes, replacing nothing; the commands
# of the 2D hippocampus bundle are those of the 3D one
bundles: $(VENV)/ready
	$(BIN)/python tools/make_bundles.py $(if $(QUICK),--quick --only hippocampus_mri_unet3d retina_vessel_unet2d,--data $(DATA))

dist: $(VENV)/ready
	rm -rf dist
	$(BIN)/python -m build --quiet --wheel --outdir dist
	$(BIN)/python tools/zip_bundles.py dist

clean:
	rm -rf demo dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
