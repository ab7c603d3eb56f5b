"""Training: stages, flags, DeepSpeed, checkpoints, the loop."""
