"""Data sets as tables of images, objects and relations."""
