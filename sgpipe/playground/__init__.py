"""A page on this machine on which a person edits a graph and sees what it does to an image."""
