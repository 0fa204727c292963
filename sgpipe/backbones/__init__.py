"""Generators: loading, block layout, rectified flow, sampling, and caches of what their encoders make."""
