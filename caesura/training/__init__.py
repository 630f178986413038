"""Exact training: a step is a function of (training state, step number, data, seed), and of nothing else."""
