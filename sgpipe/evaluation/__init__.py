"""Judges and their calibrations, what the generator does with a graph, and statistics that say how sure that is."""
