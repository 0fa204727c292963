"""Visual Genome as tables of objects, relations and curated triples."""
