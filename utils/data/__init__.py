"""From files to batches: records, pictures, prompts, tensors, sampling."""
