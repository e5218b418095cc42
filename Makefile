# Everything happens in .venv; `make demo` and `make test` need nothing but Python 3.10 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test long versions frameworks bench bench-rules bench-matrices bench-gpu figures docs lint types stubs clean

demo: $(INSTALLED)  ## train two small models with four optimizers
	$(BIN)/steprule compare

test: lint  ## lint, types and tests
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

long: $(INSTALLED)  ## the tests that take long, which `make test` leaves out
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m long

versions: $(INSTALLED)  ## what depends on versions, on the oldest and the newest set that steprule takes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check nox
	$(BIN)/nox

frameworks: $(INSTALLED)  ## what stands between users and steprule: trainers, and the recipes of docs/guides/frameworks.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check nox
	$(BIN)/nox -s frameworks

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing tools
	$(BIN)/basedpyright -p tests/typing --pythonpath $(BIN)/python

types: $(INSTALLED)  ## hold the stubs against what is there when it runs
	$(BIN)/stubtest steprule --mypy-config-file pyproject.toml --allowlist tests/typing/allowlist.txt

stubs: $(INSTALLED)  ## the .pyi files, from the rules
	$(BIN)/python tools/write_stubs.py

# Each script keeps benchmarks/NAME.json. STEPRULE_BENCH_QUICK=1 shows that they work, and measures nothing.
bench: $(INSTALLED)  ## measure on an idle machine, and put the numbers into texts; half an hour on two cores
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/low_memory.py
	$(BIN)/python benchmarks/services.py
	$(BIN)/python benchmarks/subsets.py
	$(BIN)/python benchmarks/gpu_code.py
	$(BIN)/python benchmarks/formats.py
	$(BIN)/python benchmarks/sharded.py
	$(BIN)/python benchmarks/matrix.py
	$(BIN)/python benchmarks/kronecker.py
	$(BIN)/python benchmarks/many_ranks.py
	$(BIN)/python benchmarks/training.py
	$(MAKE) figures

bench-matrices: $(INSTALLED)  ## train with rules of matrices, each tuned; three hours on one core, and it goes on where it was stopped
	$(BIN)/python benchmarks/training_matrices.py
	$(MAKE) figures

bench-gpu: $(INSTALLED)  ## measure the GPU engine; needs a GPU
	$(BIN)/python benchmarks/gpu.py
	$(MAKE) figures

figures: $(INSTALLED)  ## put the numbers of benchmarks/*.json into README.md and docs
	$(BIN)/python docs/fill.py

bench-rules: constraints.txt  ## measure every rule beside all libraries that have it, which are installed for it
	$(PYTHON) -m venv .peers
	.peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . rich timm pytorch_optimizer \
		heavyball torch-optimi lion-pytorch prodigyopt dadaptation madgrad dog-optimizer adabelief-pytorch \
		adam-atan2-pytorch grams-pytorch schedulefree
	.peers/bin/python benchmarks/rules.py
	$(MAKE) figures

docs: $(INSTALLED)  ## the documentation site, into site/; every link is checked
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --site-dir site

clean:
	rm -rf $(VENV) .peers .nox .pytest_cache .mypy_cache .ruff_cache .hypothesis steprule-report

# The constraints keep torch to a build that is small and tested; steprule itself takes a range.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'steprule needs Python 3.10 or newer')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
