# make test: sets up what is missing, then the tests. See README.md.
PYTHON = $$(scripts/setup.sh dev)
.PHONY: test test-all lint

test: lint
	@python=$(PYTHON) && "$$python" -m pytest -m "not slow"

test-all: lint
	@python=$(PYTHON) && "$$python" -m pytest

lint:
	@python=$(PYTHON) && "$$python" -m ruff check . && "$$python" -m ruff format --check .
