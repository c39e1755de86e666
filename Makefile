# `make demo` and `make test` do all the set-up they need. `make setup` alone is quiet when there is nothing to do.
VENV := .venv
BENTO := $(VENV)/bin/bento-tor

.PHONY: setup setup-dev setup-test demo test test-fast lint format test-v2 soak bench fingerprint clean

setup:
	@./setup.sh

# With linters, pytest and what the benches draw with.
setup-dev:
	@./setup.sh dev

# With Chromium besides, which only the tests need.
setup-test:
	@./setup.sh test

demo: setup
	@$(BENTO) demo

# A test that fails is tried once more, three of a run at most: both times are printed, whatever came of the second.
test: setup-test lint
	@$(VENV)/bin/python -Im pytest --reruns 1 --max-suite-reruns 3 --rerun-show-tracebacks

# What needs neither tor nor a jail: seconds.
test-fast: setup-dev
	@$(VENV)/bin/python -Im pytest -m "not tor and not sandbox"

lint: setup-dev
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@rm -rf .mypy_cache/tree && mkdir -p .mypy_cache/tree/bento_tor
	@ln -s $(CURDIR)/bento_tor/* $(CURDIR)/cli $(CURDIR)/torrc_templates .mypy_cache/tree/bento_tor/
	@$(VENV)/bin/mypy

format: setup-dev
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

# Limits by cgroup v2, delegated as systemd does it: Debian's kernel in an emulated machine, whose host may have v1.
# Fetches qemu and the kernel (85 MB) once, keeps the kernel below .cache/; then about two minutes.
test-v2: setup-dev
	@$(VENV)/bin/python -I tests/v2/machine.py

# The long forms of long checks: a box killed at 50 moments, 100 faults on real circuits, 1000 random exit policies
# against the kernel, 100 MB over an onion, 100 MB in shards over boxes that are killed and lie, ten pages padded to a
# million bytes. It goes on where it was stopped.
soak: setup-test
	@BENTO_TOR_SOAK=1 $(VENV)/bin/python -Im pytest tests/box/test_killed.py tests/box/test_faults.py \
		tests/egress/test_kernel.py tests/cli/test_function.py tests/box/test_shard.py \
		tests/functions/test_browsing.py tests/box/test_over_tor.py::test_many_megabytes_over_an_onion_arrive_whole

# Each prints what docs/benchmarks.md is about; the ones of Tor make a network namespace of their own (root).
bench: setup-dev
	@$(VENV)/bin/python bench/network_up.py
	@$(VENV)/bin/python bench/sandbox.py
	@$(VENV)/bin/python bench/roundtrips.py
	@$(VENV)/bin/python bench/goodput.py
	@$(VENV)/bin/python bench/load.py
	@$(VENV)/bin/python bench/shard.py
	@$(VENV)/bin/python bench/cover.py

# What an observer of the client's link can tell, at length: two hours and more. It goes on where it was stopped.
fingerprint: setup-dev
	@$(VENV)/bin/python bench/fingerprint.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
