"""ConceptAttention (Helbling et al. 2025) for FLUX: saliency and cross-attention maps of concepts per group of blocks."""

from sgpipe.attention_maps.options import MapOptions, concept_embeddings, concept_token_mask
from sgpipe.attention_maps.scores import GroupMaps, resize_maps
from sgpipe.attention_maps.stream import ConceptStream, concept_stream

__all__ = [
    "ConceptStream",
    "GroupMaps",
    "MapOptions",
    "concept_embeddings",
    "concept_stream",
    "concept_token_mask",
    "resize_maps",
]
