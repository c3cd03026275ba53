# `make demo` and `make test` do all set-up: the virtual environment is made on first use, and again when
# requirements.txt changes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test slow lint install clean

demo: $(READY)
	$(BIN)/multiattn demo

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --maxprocesses 4 --dist worksteal

slow: $(READY)
	$(BIN)/python -m pytest -m slow

# Without ruff's cache: it keeps a file's verdict when a module it imports has moved, and calls the imports sorted.
lint: $(READY)
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .

install: $(READY)

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; pass another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar off -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar off --no-deps --editable .
	touch $(READY)

clean:
	rm -rf data/demo runs/demo folds/demo.csv folds/demo.json submissions/demo submissions/leaderboard.*
