"""Training state, step, optimizer, checkpoints and loop."""
