"""A study kit for noise injection in facial expression recognition (Hong & Jeong, CVPR Workshops 2023)."""

import os

__version__ = "0.1.0"

# oneDNN (torch 2.11 and 2.14) reads memory that it never wrote in AMX's bf16 weight gradient of a 3x3 convolution of
# stride 2 on maps of 1x1: NaN now and then. Without AMX it doesn't; fp32 is the same with and without.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
