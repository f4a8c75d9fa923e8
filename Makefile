# make demo   a new subject is learnt and rendered, from nothing but a CPU
# make test   all checks
# make soak   what breaks runs on purpose, for half an hour; SOAK=long for longer
# make full-size   every format, precision and family through `convert` and back, in the sizes of real models (15 GB of disk)
PYTHON ?= python3
# The build of torch. On a machine without a GPU: TORCH="torch==2.13.0 --index-url <the CPU index that pytorch.org names>"
TORCH ?= torch==2.13.0
# The set of versions, one of requirements/: a1111 (Python 3.10, 3.11), forge, latest (Python 3.12 and later)
ifeq ($(origin SET), undefined)
SET = $(shell $(PYTHON) -c 'import sys; print("a1111" if sys.version_info < (3, 12) else "latest")')
VENV ?= .venv
else
VENV ?= .venv-$(SET)
endif
# Test processes side by side.
JOBS ?= 2
RUN = OMP_NUM_THREADS=1 $(VENV)/bin/python

.PHONY: demo test test-host soak full-size check setup ui clean

demo: setup
	$(RUN) -m dreambooth_ext demo

ui: setup
	$(RUN) -m dreambooth_ext ui

test: setup check
	$(RUN) -m pytest -n $(JOBS) --dist worksteal $(PYTEST_FLAGS)

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

soak: setup
	$(RUN) -m pytest -n $(JOBS) --dist worksteal -m soak tests $(PYTEST_FLAGS)

# One process: each model is written thrice.
full-size: setup
	$(RUN) -m pytest -n 0 -m full_size tests $(PYTEST_FLAGS)

# The WebUI's own torch, in an environment of its own (its wheels are large, so it is run by hand).
test-host:
	$(MAKE) test SET=a1111 VENV=.venv-host TORCH=torch==2.1.2

setup: $(VENV)/.ready

# Without compiling all of torch and scipy at once, which takes half of the time: what is imported is compiled then.
$(VENV)/.ready: requirements/$(SET).txt requirements/test.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --no-compile $(TORCH) -r requirements/$(SET).txt -r requirements/test.txt
	$(VENV)/bin/python -m pip install -qq --no-deps --editable .
	touch $@

clean:
	rm -rf .venv .venv-* build demo artefacts
