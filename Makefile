# make demo | predict | app | test | test-all | lint | tiny | description | bench | clean-venv. Each target sets up .venv by itself, once.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
export DS_ACCELERATOR ?= $(shell command -v nvidia-smi >/dev/null 2>&1 || echo cpu)
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo predict app test test-all lint tiny description bench clean-venv
setup: $(READY)

# uv when it can be had (seconds), pip otherwise. `--torch-backend auto` picks the CPU build of torch where there is no GPU;
# its index may be out of reach, then the plain requirement serves.
$(READY): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11: make PYTHON=python3.11 ..." >&2; exit 1; }
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

HANDFUL := examples/SID_handful/test
demo: $(READY)
	@$(PY) chat.py --version ck/SIDA-tiny --vis_save_path vis_output --image $(HANDFUL)/real/*.jpg $(HANDFUL)/full_synthetic/*.jpg $(HANDFUL)/tampered/*.jpg
	@echo; echo "Masks and overlays are in vis_output/. Next: $(PY) chat.py asks for a prompt and for the path of a picture."

PICTURES ?= $(error say which: make predict PICTURES=photo.jpg)
predict: $(READY)
	@$(PY) predict.py $(PICTURES)
app: $(READY)
	@$(PY) app.py

# From nothing to ck/SIDA-tiny and ck/SIDA-tiny-description. Each stage leaves its network in runs/ and is not run again: rm -rf runs/tiny-* begins anew.
#
# runs/tiny-384/merged, four hours and a half on two cores with bfloat16 units (AVX512_BF16 or AMX; several times that without): 24 000 pictures of
# 256 pixels from examples/photos, a random base, its stem and then its encoders patch by patch, the whole network as the 7B is trained.
# Then the same on 24 000 pictures from three times as many sources, fetched (650 MB): encoders, whole network, and that once more. Then the network
# is given 384 pixels, and trains whole on 24 000 pictures of that size from six times as many sources (450 MB more). Each time the last state
# is merged: on validation its masks were better than those of the state with the best accuracy (docs/training.md).
SMALL := data/SID_Small
$(SMALL): | $(READY)
	$(PY) -m utils.data.sid_mini --out $(SMALL) --size 256 --per_class 8000
# its validation and test split are SMALL's, byte for byte
MORE := data/SID_More
data/more: | $(READY)
	$(PY) -m utils.data.more --out data/more
$(MORE): | $(READY) data/more
	$(PY) -m utils.data.sid_mini --out $(MORE) --size 256 --per_class 8000 --train_photos data/more/real --train_ai data/more/ai
# its validation and test split are those of `python -m utils.data.sid_mini --out data/SID_Mini --per_class 8000`, byte for byte
LARGE := data/SID_384
data/wider: | $(READY)
	$(PY) -m utils.data.more --out data/wider --list examples/photos/WIDER.csv
$(LARGE): | $(READY) data/more data/wider
	$(PY) -m utils.data.sid_mini --out $(LARGE) --per_class 8000 --train_photos data/more/real data/wider/real --train_ai data/more/ai data/wider/ai
# fp32 is faster on a CPU without bfloat16 units
PRECISION ?= bf16
# 30 000 pictures from the same sources; its first 24 000 are LARGE's
JOINT := data/SID_Joint
$(JOINT): | $(READY) data/more data/wider
	$(PY) -m utils.data.sid_mini --out $(JOINT) --per_class 10000 --train_photos data/more/real data/wider/real --train_ai data/more/ai data/wider/ai
# whole network: checkpoint to start from, data, name in runs/, steps of each of four epochs, seed, folder for the result, more flags
whole = $(PY) train_SIDA.py --version $(1) --dataset_dir $(2) --exp_name $(3) --precision $(PRECISION) --train_vision --turn --lora_r 0 --train_text \
  --ce_loss_weight 0.2 --no_gradient_checkpointing --batch_mixing mixed --batch_size 24 --grad_accumulation_steps 1 --val_batch_size 16 \
  --epochs 4 --steps_per_epoch $(4) --lr 0.0003 --workers 1 --seed $(5) $(7) \
  && $(PY) merge_lora_weights_and_save_hf_model.py --version $(1) --weight runs/$(3)/ckpt_last --save_path $(6) --precision fp16
runs/tiny-384/merged: | $(READY) $(SMALL) $(MORE) $(LARGE)
	rm -rf runs/tiny-{base,pack,more,wider,new,again,small,384-base,384}
	$(PY) -m utils.train.scratch --out runs/tiny-base --dataset_dir $(SMALL)
	$(PY) -m utils.train.pretrain --version runs/tiny-base --dataset_dir $(SMALL) --stem_steps 5000 --steps 900
	$(call whole,runs/tiny-base,$(SMALL),tiny-pack,400,42,runs/tiny-more)
	$(PY) -m utils.train.pretrain --version runs/tiny-more --dataset_dir $(MORE) --steps 800 --lr 0.0006
	$(call whole,runs/tiny-more,$(MORE),tiny-wider,380,42,runs/tiny-new)
	$(call whole,runs/tiny-new,$(MORE),tiny-again,400,1,runs/tiny-small)
	$(PY) -m utils.train.enlarge --version runs/tiny-small --side 384 --out runs/tiny-384-base
	$(call whole,runs/tiny-384-base,$(LARGE),tiny-384,500,11,$@,--model_max_length 1024)

# runs/tiny-words-384/merged, from those, in an hour and three quarters, the last three stages of it an estimate (they were run in fp32): their encoders stay, and are run
# once (features, 3.4 GB at 256 pixels, 7.2 GB at 384). The small one learns where and how a picture was tampered with, first alone, then mixed with
# whole descriptions, then in those; what that changed is added to the large one, which learns to say it on the larger pictures, and then the same course there once more.
# learn: checkpoint to start from, data, name in runs/, flags, folder for the result
learn = $(PY) train_SIDA.py --stage description --version $(1) --dataset_dir $(2) --exp_name $(3) --precision $(PRECISION) --lora_r 0 --no_gradient_checkpointing \
  --batch_mixing mixed --grad_accumulation_steps 1 --val_batch_size 32 --workers 1 --no_eval --ce_loss_weight 3 --mask_loss_weight 0.1 $(4) \
  && $(PY) merge_lora_weights_and_save_hf_model.py --version $(1) --weight runs/$(3)/ckpt_last --save_path $(5) --precision fp16
small = --cache_features runs/tiny-features --cls_loss_weight 0.2
large = --cache_features runs/tiny-features-384 --cls_loss_weight 0.5
runs/tiny-words-384/merged: | runs/tiny-384/merged
	rm -rf runs/tiny-{features,brief,mixed,words,features-384,384-init,mixed-384,whole-384,brief-384,mixed-2-384,words-384}
	$(PY) -m utils.data.brief --dataset_dir $(MORE) --out $(MORE)/brief.jsonl
	$(PY) -m utils.data.brief --dataset_dir $(MORE) --out $(MORE)/mixed.jsonl --mixed
	$(PY) -m utils.data.brief --dataset_dir $(LARGE) --out $(LARGE)/brief.jsonl --others 4
	$(PY) -m utils.data.brief --dataset_dir $(LARGE) --out $(LARGE)/mixed.jsonl --mixed
	$(call learn,runs/tiny-small,$(MORE)/brief.jsonl,tiny-brief,$(small) --batch_size 48 --epochs 4 --steps_per_epoch 350 --lr 0.0008,runs/tiny-brief/merged)
	$(call learn,runs/tiny-brief/merged,$(MORE)/mixed.jsonl,tiny-mixed,$(small) --batch_size 32 --epochs 2 --steps_per_epoch 200 --lr 0.0005,runs/tiny-mixed/merged)
	$(call learn,runs/tiny-mixed/merged,$(MORE),tiny-words,$(small) --batch_size 32 --epochs 3 --steps_per_epoch 300 --lr 0.0004,runs/tiny-words/merged)
	$(PY) -m utils.train.transfer --version runs/tiny-384/merged --before runs/tiny-small --after runs/tiny-words/merged --out runs/tiny-384-init
	$(call learn,runs/tiny-384-init,$(LARGE)/mixed.jsonl,tiny-mixed-384,$(large) --batch_size 32 --steps_per_epoch 300 --epochs 1 --lr 0.0006,runs/tiny-mixed-384/merged)
	$(call learn,runs/tiny-mixed-384/merged,$(LARGE),tiny-whole-384,$(large) --batch_size 32 --steps_per_epoch 160 --epochs 1 --lr 0.0004,runs/tiny-whole-384/merged)
	$(call learn,runs/tiny-whole-384/merged,$(LARGE)/brief.jsonl,tiny-brief-384,$(large) --batch_size 24 --steps_per_epoch 410 --epochs 1 --warmup_steps 30 --lr 0.0008,runs/tiny-brief-384/merged)
	$(call learn,runs/tiny-brief-384/merged,$(LARGE)/mixed.jsonl,tiny-mixed-2-384,$(large) --batch_size 32 --steps_per_epoch 150 --epochs 1 --warmup_steps 30 --lr 0.0006,runs/tiny-mixed-2-384/merged)
	$(call learn,runs/tiny-mixed-2-384/merged,$(LARGE),tiny-words-384,$(large) --batch_size 32 --steps_per_epoch 170 --epochs 1 --warmup_steps 30 --lr 0.0004,$@)

# runs/tiny-joint/merged, from that with a layer more in each encoder: six minutes and a half on an H100, three hours and a half on two cores (estimated). The whole network learns
# verdicts, masks and kinds of tampering together, from turned pictures, of which no place could be said.
runs/tiny-joint/merged: | runs/tiny-words-384/merged $(JOINT)
	rm -rf runs/tiny-{deep,joint}
	$(PY) -m utils.train.enlarge --version runs/tiny-words-384/merged --layers 1 --out runs/tiny-deep
	$(PY) -m utils.data.brief --dataset_dir $(JOINT) --out $(JOINT)/kind.jsonl --kind
	$(PY) train_SIDA.py --stage description --version runs/tiny-deep --dataset_dir $(JOINT)/kind.jsonl --exp_name tiny-joint --precision $(PRECISION) --train_vision --turn --lora_r 0 \
	  --no_gradient_checkpointing --batch_mixing mixed --batch_size 64 --grad_accumulation_steps 1 --no_eval --epochs 1 --steps_per_epoch 1450 --warmup_steps 150 --lr 0.0005 \
	  --ce_loss_weight 3 --cls_loss_weight 1 --mask_loss_weight 1
	$(PY) merge_lora_weights_and_save_hf_model.py --version runs/tiny-deep --weight runs/tiny-joint/ckpt_last --save_path $@ --precision fp16

# A second opinion for SIDA-tiny, in 22 minutes: a small CLIP that inherits the first layers of a large one (78 MB, fetched) and learns to see what that sees.
runs/tiny-clip: | $(READY) $(LARGE)
	$(PY) -m utils.train.small_clip --dataset_dir $(LARGE) --pictures 24000 --out $@

# And a third, in two hours and a quarter: a convolutional network on noise residuals, from nothing, in three courses, the last one on worn pictures.
runs/tiny-noise: | $(READY) $(LARGE)
	$(PY) -m utils.train.noise --dataset_dir $(LARGE) --out $@-begun
	$(PY) -m utils.train.noise --dataset_dir $(LARGE) --start $@-begun --crop_steps 2400 --steps 1200 --lr 0.001 --seed 1 --out $@-more
	$(PY) -m utils.train.noise --dataset_dir $(LARGE) --start $@-more --crop_steps 1200 --steps 600 --lr 0.001 --seed 2 --worn 0.3 --out $@

# SIDA-tiny has its mask decoder pruned, to make room for the experts, and learns SIDA's own question and answer in ten minutes, its encoders as they are. Then the whole network learns from
# worn pictures, in two courses of 25 minutes. The mean of what went in (counted twice) and what came out of each knows most of that, and pictures as they are as well as before. The experts are
# added when nothing trains any more. (When the shipped weights were trained, worn pictures were compressed as JPEG alone, and once.)
finish = --lora_r 0 --no_gradient_checkpointing --batch_mixing mixed --grad_accumulation_steps 1 --workers 1 --no_eval --epochs 1 --precision $(PRECISION) --turn --train_text \
  --ce_loss_weight 0.2 --batch_size 24 --model_max_length 1024
# worn: checkpoint to start from, name in runs/, learning rate, warm-up, seed
worn = $(PY) train_SIDA.py --version $(1) --dataset_dir $(LARGE) --exp_name $(2) $(finish) --train_vision --worn 0.3 --steps_per_epoch 400 --lr $(3) --warmup_steps $(4) --seed $(5) \
  && $(PY) merge_lora_weights_and_save_hf_model.py --version $(1) --weight runs/$(2)/ckpt_last --save_path runs/$(2)/merged --precision fp16
runs/tiny-mean: | runs/tiny-joint/merged
	rm -rf runs/tiny-{pruned,sida,worn,worn-again}
	$(PY) -m utils.train.prune --version runs/tiny-joint/merged --dataset_dir $(LARGE) --out runs/tiny-pruned
	$(PY) train_SIDA.py --version runs/tiny-pruned --dataset_dir $(LARGE) --exp_name tiny-sida $(finish) --warmup_steps 30 --steps_per_epoch 260 --lr 0.0003 --seed 12
	$(PY) merge_lora_weights_and_save_hf_model.py --version runs/tiny-pruned --weight runs/tiny-sida/ckpt_last --save_path runs/tiny-sida/merged --precision fp16
	$(call worn,runs/tiny-sida/merged,tiny-worn,0.0003,30,13)
	$(call worn,runs/tiny-worn/merged,tiny-worn-again,0.0002,20,14)
	$(PY) -m utils.train.average --versions runs/tiny-sida/merged runs/tiny-sida/merged runs/tiny-worn/merged runs/tiny-worn-again/merged --out $@
tiny: runs/tiny-mean runs/tiny-clip runs/tiny-noise
	rm -rf runs/tiny-validation
	$(PY) -m utils.train.experts --version runs/tiny-mean --clip runs/tiny-clip --noise runs/tiny-noise --dataset_dir $(LARGE) --out ck/SIDA-tiny
	$(PY) evaluate_SIDA.py --version ck/SIDA-tiny --dataset $(LARGE) --split validation --views 4 --save_temperature --out runs/tiny-validation

# SIDA-tiny-description learns places and whole descriptions with those encoders as they were before worn pictures, in an hour and a half.
deep = --cache_features runs/tiny-features-deep --cls_loss_weight 0.5 --batch_size 32 --epochs 1 --warmup_steps 30
runs/tiny-words-deep/merged: | runs/tiny-joint/merged
	rm -rf runs/tiny-{features-deep,brief-deep,mixed-deep,words-deep}
	$(call learn,runs/tiny-joint/merged,$(LARGE)/brief.jsonl,tiny-brief-deep,$(deep) --steps_per_epoch 320 --lr 0.0008,runs/tiny-brief-deep/merged)
	$(call learn,runs/tiny-brief-deep/merged,$(LARGE)/mixed.jsonl,tiny-mixed-deep,$(deep) --steps_per_epoch 120 --lr 0.0006,runs/tiny-mixed-deep/merged)
	$(call learn,runs/tiny-mixed-deep/merged,$(LARGE),tiny-words-deep,$(deep) --steps_per_epoch 110 --lr 0.0004,$@)

# Then the tower is shown where a picture repeats itself, in five minutes, and the same course, in half as many steps, teaches what that means, in seventeen. Its mask decoder is pruned
# too, and 120 steps more on whole descriptions make up for that, in ten. Given SIDA-tiny's encoders it learns on worn pictures to tell from what those see, in twelve; the mean of before and after
# gets SIDA-tiny's experts.
echo = --cls_loss_weight 0.5 --batch_size 32 --epochs 1 --warmup_steps 20
description: runs/tiny-words-deep/merged runs/tiny-mean
	rm -rf runs/tiny-{echo,brief-echo,mixed-echo,words-echo,words-pruned,words-again,words-mean,words-worn,description,description-validation}
	$(PY) -m utils.train.echo --version $< --dataset_dir $(LARGE) --steps 300 --out runs/tiny-echo
	$(call learn,runs/tiny-echo,$(LARGE)/brief.jsonl,tiny-brief-echo,$(echo) --steps_per_epoch 140 --lr 0.0008,runs/tiny-brief-echo/merged)
	$(call learn,runs/tiny-brief-echo/merged,$(LARGE)/mixed.jsonl,tiny-mixed-echo,$(echo) --steps_per_epoch 60 --lr 0.0006,runs/tiny-mixed-echo/merged)
	$(call learn,runs/tiny-mixed-echo/merged,$(LARGE),tiny-words-echo,$(echo) --steps_per_epoch 90 --lr 0.0004,runs/tiny-words-echo/merged)
	$(PY) -m utils.train.prune --version runs/tiny-words-echo/merged --dataset_dir $(LARGE) --out runs/tiny-words-pruned
	$(call learn,runs/tiny-words-pruned,$(LARGE),tiny-words-again,$(echo) --steps_per_epoch 120 --lr 0.0004,runs/tiny-words-again/merged)
	$(PY) -m utils.train.transfer --version runs/tiny-words-again/merged --encoders runs/tiny-mean --out runs/tiny-words-mean
	$(call learn,runs/tiny-words-mean,$(LARGE),tiny-words-worn,$(echo) --steps_per_epoch 140 --lr 0.0004 --mask_loss_weight 0.3 --worn 0.25 --seed 24,runs/tiny-words-worn/merged)
	$(PY) -m utils.train.average --versions runs/tiny-words-again/merged runs/tiny-words-worn/merged --out runs/tiny-description
	$(PY) -m utils.train.experts --version runs/tiny-description --experts ck/SIDA-tiny --dataset_dir $(LARGE) --out ck/SIDA-tiny-description
	$(PY) evaluate_SIDA.py --version ck/SIDA-tiny-description --dataset $(LARGE) --split validation --views 4 --save_temperature --out runs/tiny-description-validation

# The tables of docs/benchmarks.md: on pictures that both never saw, and how fast this code is beside a plain baseline.
bench: $(READY) $(LARGE)
	$(PY) -m utils.eval.benchmark --version ck/SIDA-tiny --dataset_dir $(LARGE) --bits 8 4 --out docs/benchmarks
	$(PY) -m utils.eval.explanations --version ck/SIDA-tiny-description --dataset_dir $(LARGE) --out docs/benchmarks
	@if [ -f runs/tiny-joint/log.jsonl ]; then $(PY) -m utils.eval.plots runs/tiny-joint --out docs/benchmarks/learning_curve.png; fi
	$(PY) -m benchmarks.run --size medium --lengths 64 512 --memory --floors --out docs/benchmarks
	$(PY) -m benchmarks.curve --out docs/benchmarks
	$(PY) -m benchmarks.many --dataset_dir $(LARGE) --out docs/benchmarks

test: $(READY)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term:skip-covered

test-all: $(READY)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m ""

lint: $(READY)
	@$(PY) -m ruff check .

clean-venv:
	rm -rf $(VENV)
