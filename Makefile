# `make demo` and `make test` do all the set-up they need. `make setup` alone is quiet when there is nothing to do.
VENV := .venv
BENTO := $(VENV)/bin/bento-tor

.PHONY: setup demo test test-fast lint format test-v2 soak bench clean

setup:
	@./setup.sh

demo: setup
	@$(BENTO) demo

test: setup lint
	@$(VENV)/bin/python -Im pytest

# What needs neither tor nor a jail: seconds.
test-fast: setup
	@$(VENV)/bin/python -Im pytest -m "not tor and not sandbox"

lint: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@rm -rf .mypy_cache/tree && mkdir -p .mypy_cache/tree/bento_tor
	@ln -s $(CURDIR)/bento_tor/* $(CURDIR)/cli $(CURDIR)/torrc_templates .mypy_cache/tree/bento_tor/
	@$(VENV)/bin/mypy

format: setup
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

# Limits by cgroup v2, delegated as systemd does it: Debian's kernel in an emulated machine, whose host may have v1.
# Fetches qemu and the kernel (85 MB) once, keeps the kernel below .cache/; then about two minutes.
test-v2: setup
	@$(VENV)/bin/python -I tests/v2/machine.py

# The long forms of long checks: a box killed at 50 moments, 100 faults on real circuits, 1000 random exit policies
# against the kernel. It goes on where it was stopped.
soak: setup
	@BENTO_TOR_SOAK=1 $(VENV)/bin/python -Im pytest tests/box/test_killed.py tests/box/test_faults.py tests/egress/test_kernel.py

# Each prints what docs/benchmarks.md is about; the ones of Tor make a network namespace of their own (root).
bench: setup
	@$(VENV)/bin/python bench/network_up.py
	@$(VENV)/bin/python bench/sandbox.py
	@$(VENV)/bin/python bench/roundtrips.py
	@$(VENV)/bin/python bench/goodput.py
	@$(VENV)/bin/python bench/load.py
	@$(VENV)/bin/python bench/cover.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
