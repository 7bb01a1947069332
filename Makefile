# make demo    everything on a small generated data set:  make demo ARGS="--help"
# make test    linter, types and tests
# Both set up .venv first, and again whenever the dependencies in setup.cfg change.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test clean

demo: $(VENV)/.installed
	$(BIN)/avssl demo $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) build dist *.egg-info

# The stamps are touched only after success, so that an interrupted installation is taken up again.
$(VENV)/.installed: setup.cfg pyproject.toml | $(VENV)/.created
	@echo "Installing avssl and what it needs into $(VENV) (about 7 GB with the CUDA libraries) ..."
	$(PIP) install -e .
	@touch $@

$(VENV)/.installed-test: setup.cfg pyproject.toml | $(VENV)/.created
	@echo "Installing avssl, what it needs and the test tools into $(VENV) ..."
	$(PIP) install -e ".[test]"
	@touch $@ $(VENV)/.installed

$(VENV)/.created:
	@command -v $(PYTHON) > /dev/null || \
		{ echo "error: no '$(PYTHON)'; install Python 3.10 or later, or: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $$($(PYTHON) --version) is too old; avssl needs Python 3.10 or later: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
		{ echo "error: '$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@touch $@
