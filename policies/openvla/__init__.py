"""OpenVLA and OpenVLA-OFT (arXiv:2406.09246, 2502.19645)."""
