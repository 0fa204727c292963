"""Training of an arm: data, objective, loop, checkpoints."""
