# `make demo` and `make test` do all the set-up they need. `make setup` alone is quiet when there is nothing to do.
VENV := .venv
BENTO := $(VENV)/bin/bento-tor

.PHONY: setup demo test test-fast lint format soak bench clean

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

bench: setup
	@$(VENV)/bin/python bench/network_up.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
