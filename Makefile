# spikeprune: `make demo` shows it, `make test` checks it. Both make .venv first; set-up again takes seconds.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv does not read pip's settings: hand it pip's find-links (empty is fine).
export UV_FIND_LINKS ?= $(shell $(PY) -m pip config get global.find-links 2>/dev/null || true)

.PHONY: setup demo test lint types format wheel test-wheel bench test-compat clean

setup: $(VENV)/.ok

$(VENV)/.ok: pyproject.toml constraints.txt
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/spikeprune demo

test: setup lint types
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright
	$(BIN)/pyright -p pyright-strict.json

format: setup
	$(BIN)/ruff check --fix-only . && $(BIN)/ruff format .

# The adapter against SpikingJelly 0.0.0.0.14, which many trained models still use, in an environment of its own.
test-compat: setup
	$(PY) -m venv .venv-compat
	$(BIN)/uv pip install -q --python .venv-compat/bin/python -c constraints.txt -e . pytest hypothesis beartype scipy tqdm numpy matplotlib
	$(BIN)/uv pip install -q --python .venv-compat/bin/python --no-deps spikingjelly==0.0.0.0.14
	.venv-compat/bin/python -m pytest -W ignore::DeprecationWarning -W ignore::SyntaxWarning -m compat \
		tests/unit/test_adapter_spikingjelly.py tests/unit/test_trace.py tests/unit/test_pruner.py

# A wheel with this machine's kernels built ahead, and a network compiled from it where no compiler is to be found.
wheel: setup
	$(BIN)/python -m spikeprune.runtime.native
	$(BIN)/uv build --wheel -o build/wheel
	rm -rf src/spikeprune/runtime/kernels/built

test-wheel: wheel
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --target build/wheel/site build/wheel/*.whl
	cd build/wheel && env -i HOME="$$HOME" PATH=/nonexistent XDG_CACHE_HOME=$$PWD/cache PYTHONPATH=$$PWD/site \
		../../$(BIN)/python ../../tests/wheel_check.py $$PWD/site

# Every number that README and docs claim, hours on a small machine; benchmarks/README.md says what is in it.
bench: setup
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/all.py

clean:
	rm -rf $(VENV) .venv-compat build dist
