"""Demonstrations: `collect` plays and records them; `lerobot` and `hdf5` are the formats on disk."""
