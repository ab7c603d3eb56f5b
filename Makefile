# make demo | test | test-all | lint | tiny | clean-venv. Each target sets up .venv by itself, once.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
export DS_ACCELERATOR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 || echo cpu)
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo test test-all lint tiny clean-venv
setup: $(READY)

# uv when it can be had (seconds), pip otherwise. `--torch-backend auto` picks the CPU build of torch where there is no GPU;
# its index may be out of reach, then the plain requirement serves.
$(READY): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than 3.10: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "setting up $(VENV) (about 1.6 GB; a minute or two)"
	@$(PYTHON) -m venv $(VENV) || { echo "error: could not make $(VENV): is python3-venv installed?" >&2; exit 1; }
	@$(PY) -m pip install -q uv 2>/dev/null || true
	@export UV_FIND_LINKS="$$PIP_FIND_LINKS"; if $(PY) -m uv --version >/dev/null 2>&1; then \
	    $(PY) -m uv pip install -q --compile-bytecode --python $(PY) --torch-backend auto -r requirements-dev.txt 2>/dev/null \
	 || $(PY) -m uv pip install -q --compile-bytecode --python $(PY) -r requirements-dev.txt \
	 || $(PY) -m pip install -q -r requirements-dev.txt; \
	 else $(PY) -m pip install -q -r requirements-dev.txt; fi \
	 || { echo "error: installing requirements-dev.txt failed: is a package index reachable, and is there 2 GB of disk?" >&2; exit 1; }
	@touch $@

DEMO := examples/SID_handful/train
demo: $(READY)
	@$(PY) chat.py --version ck/SIDA-tiny --vis_save_path vis_output --prompt "" --image $(DEMO)/*/*.jpg 2>/dev/null
	@echo; echo "Masks and overlays are in vis_output/. Next: $(PY) chat.py   (asks for a prompt, then for the path of your own picture)"

test: $(READY)
	@OMP_NUM_THREADS=1 $(PY) -m pytest --cov --cov-report=term:skip-covered

test-all: $(READY)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m ""

lint: $(READY)
	@$(PY) -m ruff check .

clean-venv:
	rm -rf $(VENV)
