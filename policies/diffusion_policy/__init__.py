"""Diffusion Policy (arXiv:2303.04137), and the networks of robomimic's format."""
