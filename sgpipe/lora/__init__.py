"""The graph-conditioned LoRA: targeting, losses, training, adapters and generation with them."""
