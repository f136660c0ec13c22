"""Training runs: updates, stages, environments stepped in parallel, evaluation."""
