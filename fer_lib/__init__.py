"""A study kit for noise injection in facial expression recognition (Hong & Jeong, CVPR Workshops 2023)."""

__version__ = "0.1.0"
