"""Images: sources, prepared files, and batches for training and evaluation."""
