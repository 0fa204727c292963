"""Scene graphs: the value, curated triples, negatives and prompts."""
