"""How many cases each fuzz test runs."""

import os


def cases(default: int) -> int:
    return int(os.environ.get("FER_FUZZ_CASES", default))
