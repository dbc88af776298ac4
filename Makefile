# make setup       virtual environment in .venv with the exact versions of constraints.txt
# make reproduce   every notebook of the nursery preset, then tables, figures and report (below runs/)
# make test        lint, types and tests, a file of tests after the other on each core (ARGS="-n 0": one process)
# make clean       delete the environment and all caches; results (runs/) stay
#
# Needs Python 3.11 or newer, pip and make. On Linux without a GPU, this takes the small CPU build of torch:
#     PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup

PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
ARGS ?=
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: setup reproduce test clean

setup: $(STAMP)

# The stamp is written last, so a broken installation is done again, and so is one older than the pins.
$(STAMP): pyproject.toml constraints.txt hashes.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'wmlkit needs Python 3.11 or newer; name one with: make setup PYTHON=/path/to/python3.11' >&2; exit 2; }
	@rm -f $@
	"$(PYTHON)" -m venv .venv || \
	  { echo 'the virtual environment could not be made; on Debian and Ubuntu install python3-venv' >&2; exit 2; }
	@echo 'Installing the pinned packages into .venv: a few minutes, about 2 GB on disk'
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r hashes.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

reproduce: setup
	$(BIN)/wmlkit reproduce $(ARGS)

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage* *.egg-info
	find . -path ./.git -prune -o -path ./runs -prune -o -type d \
	  \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
