"""SGDiff (Yang et al. 2022, arXiv 2211.11138): a latent diffusion U-Net conditioned on a scene graph's CGIP embeddings."""
