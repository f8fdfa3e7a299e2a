"""Seeds derived from what they are for, so that no result depends on workers, ranks or the order of calls."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a pure function of its parts.

    Args:
        parts: what the randomness belongs to, for example ``(run seed, epoch, image index, view)``.

    Returns:
        An integer in [0, 2**63), the same on every machine and in every process; changing any part changes it.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
