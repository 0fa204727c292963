"""Structure-aware scene-graph conditioning of diffusion transformers."""
