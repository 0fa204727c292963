"""Scene graphs as vectors: SGDiff's encoder, an open-vocabulary one, their pre-training, and the tokens that a generator reads."""
