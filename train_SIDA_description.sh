#!/bin/sh
# Teach SIDA to explain: up to 5 epochs on the 3,000 described images; the lowest validation loss of the text is kept. Flags given to this script win over those below.
exec deepspeed --master_port=24999 train_SIDA.py \
  --stage description \
  --version ./ck/SIDA-7B \
  --dataset_dir /path_to/text_label_images/ \
  --vision_pretrained ./ck/sam_vit_h_4b8939.pth \
  --val_dataset /path_to/text_label_images/ \
  --batch_size 2 \
  --exp_name SIDA-7B-description \
  --epochs 5 \
  --steps_per_epoch 100 \
  --early_stop 1 \
  "$@"
