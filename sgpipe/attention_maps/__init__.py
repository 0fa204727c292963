"""ConceptAttention (Helbling et al. 2025): saliency and cross-attention maps of concepts per group of blocks."""
