"""Relation probes: classifiers of the relation from maps of concepts, and the controls that tell what they read."""
