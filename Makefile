# `make demo` and `make test` do all set-up: the virtual environment is made on first use, and again when
# requirements.txt changes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Where it is set, each of some hundred processes compiles our sources anew, and each test process all tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test slow lint floor gpu install clean

demo: $(READY)
	$(BIN)/multiattn demo

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" --numprocesses auto --dist worksteal

# Of the files that hold such tests alone: to import the other three quarters takes each process many seconds.
slow: $(READY)
	$(BIN)/python -m pytest -m slow --numprocesses auto --dist worksteal $$(grep -rl 'mark\.slow' tests --include 'test_*.py')

# Without ruff's cache: it keeps a file's verdict when a module it imports has moved, and calls the imports sorted.
lint: $(READY)
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .

# Fast tests that need no training, with the oldest versions requirements.txt admits of all but torch, torchvision and the
# extras (peft 0.18 was tried by hand with the tests of LoRA).
FLOOR := $(VENV)-floor
LONG := scoring/test_tuning scoring/test_intervals video/test_crop_images video/test_faces_folder video/test_faults video/test_retinaface
# pandas 2 has another dtype for the categories of an empty column.
OTHERWISE := -k "not (read_in_pieces and empty)"
FLOOR_TESTS := tests/test_main.py tests/test_tables.py tests/scoring tests/video $(LONG:%=--ignore tests/%.py) $(OTHERWISE)
floor: $(READY)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "the lower bounds are for Python 3.11: make floor VENV=.venv311 PYTHON=python3.11" >&2; exit 1; }
	$(BIN)/python -m venv --clear $(FLOOR)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$($(FLOOR)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/after_the_lower_bounds.pth"
	sed -nE '/^(torch|torchvision|ruff)\W/d; /^# Extra: (serve|dask|ray|lora|onnx)/,/^$$/d; /^(httpx|schemathesis|playwright)\W/d; s/^([a-z-]+)>=([0-9.]+).*/\1==\2/p' requirements.txt > $(FLOOR)/lower.txt
	$(FLOOR)/bin/python -m pip install $(QUIETLY) --no-compile -r $(FLOOR)/lower.txt
	$(FLOOR)/bin/python -m pytest -m "not slow and not shared" --numprocesses auto $(FLOOR_TESTS)

# All that needs a GPU, in less than 8 minutes on one. For a machine without a network, `make gpu PY=python3 WHEELS=DIR`
# takes that interpreter's own packages and, before them, the wheels of a folder.
PY ?=
WHEELS ?=
PACKAGES := data/gpu/packages
gpu: $(if $(PY),,$(READY))
	$(if $(WHEELS),$(or $(PY),$(BIN)/python) -m pip install $(QUIETLY) --no-index --no-deps --upgrade --target $(PACKAGES) $(WHEELS)/*.whl)
	PYTHONPATH=$(CURDIR)/src$(if $(WHEELS),:$(CURDIR)/$(PACKAGES)) $(or $(PY),$(BIN)/python) -m multiattn bench gpu $(GPU_OPTIONS)

install: $(READY)

QUIETLY := --disable-pip-version-check --quiet --progress-bar off
$(READY): requirements.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; pass another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(QUIETLY) --upgrade pip
	$(BIN)/python -m pip install $(QUIETLY) --no-compile -r requirements.txt
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # pip takes one core for it; a few files are templates
	$(BIN)/python -m pip install $(QUIETLY) --no-deps --editable .
	touch $(READY)

clean:
	rm -rf data/demo runs/demo folds/demo.csv folds/demo.json submissions/demo submissions/leaderboard.*
