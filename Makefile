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

HANDFUL := examples/SID_handful
demo: $(READY)
	@$(PY) chat.py --version ck/SIDA-tiny --vis_save_path vis_output --image $(HANDFUL)/train/real/*.jpg $(HANDFUL)/train/full_synthetic/*.jpg $(HANDFUL)/train/tampered/*.jpg
	@echo; echo "Masks and overlays are in vis_output/. Next: $(PY) chat.py asks for a prompt and for the path of a picture."

# From nothing to ck/SIDA-tiny in about two minutes on one core: a random base, 200 steps on the nine pictures, merge.
tiny: $(READY)
	rm -rf runs/tiny runs/tiny-base
	$(PY) -m utils.train.scratch --out runs/tiny-base --dataset_dir $(HANDFUL)
	OMP_NUM_THREADS=1 $(PY) train_SIDA.py --version runs/tiny-base --dataset_dir $(HANDFUL) --precision fp32 --train_text --no_gradient_checkpointing \
	  --batch_size 3 --grad_accumulation_steps 3 --epochs 1 --steps_per_epoch 200 --lr 0.003 --warmup_steps 20 --workers 1 --exp_name tiny
	$(PY) merge_lora_weights_and_save_hf_model.py --version runs/tiny-base --weight runs/tiny/ckpt_last --save_path ck/SIDA-tiny --precision fp16

test: $(READY)
	@OMP_NUM_THREADS=1 $(PY) -m pytest --cov --cov-report=term:skip-covered

test-all: $(READY)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m ""

lint: $(READY)
	@$(PY) -m ruff check .

clean-venv:
	rm -rf $(VENV)
