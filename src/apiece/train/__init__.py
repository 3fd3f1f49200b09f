"""Training: the loop, batches, optimizer, checkpoints, the run's folder."""
