"""Seeds derived from what they are for, so that no result depends on what ran before it."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that is a function of `seed` and `purpose` alone, for instance `derive_seed(0, "batch", 3)`."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
