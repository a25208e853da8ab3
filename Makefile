# `make run` and `make test` are all a fresh machine needs: each makes its virtual environment first.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip

.PHONY: run test gpu lint types chromium docs clean

# The main job on the bundled model and a bundled task; on one thread, which a busy machine slows down least.
run: $(VENV)/installed
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/harness run --method layer-drop:count=2 --task pocket_choice --limit 200 --batch_size 16

# Everything that CI checks: style, types, all tests.
test: $(VENV)/installed-dev lint types chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow or not slow"

# What a card must show before a release: the suite in 4 minutes, then the benchmark in 8, alone on the machine.
# DEVICE=cpu tries what can be without a GPU; docs/gpu.md says what each of them shows.
DEVICE := cuda:0
gpu: $(VENV)/installed-dev
	mkdir -p build/gpu
	$(BIN)/python -m pytest -q -n 4 -m gpu --device $(DEVICE) --outcomes build/gpu/suite.json tests/gpu
	$(BIN)/python -m tests.benchmarks.gpu --device $(DEVICE) --out build/gpu/benchmark.json \
	    $(if $(filter cpu,$(DEVICE)),--small)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The board is looked at in a browser. Where Debian's cannot be installed, its tests are skipped and say so.
chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	    { apt-get update -qq; apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1; } || \
	    echo "no chromium: the tests of the board in a browser are skipped"

# mypy sees the packages where an installed wheel has them: harness.methods is the folder methods/.
types: $(VENV)/installed-dev
	rm -rf build/types && mkdir -p build/types/harness
	ln -s $(CURDIR)/harness/* build/types/harness
	ln -s $(addprefix $(CURDIR)/,leaderboard methods reports tasks) build/types/harness
	MYPYPATH=build/types $(BIN)/mypy -p harness

# The documentation's site, which opens from disk; the tests build it too, and follow its links.
docs: $(VENV)/installed-dev
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo build/site/index.html

$(VENV)/installed: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install --quiet --constraint constraints.txt --editable ".[dev,docs]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
