"""ReconVLA (arXiv:2508.10333)."""
