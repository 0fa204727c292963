"""A small drawn world: data in Visual Genome's layout, an exact detector, and the checkpoints trained on it."""
