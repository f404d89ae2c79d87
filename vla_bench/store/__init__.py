"""Runs on disk: `runs` writes and reads them, the others keep them whole."""
