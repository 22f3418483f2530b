"""Session tokens: made here, read here, and never shown by a repr or a log line.

`gs1_<uid, 32 hex>_<secret, 43 characters>`. Redis keeps only the SHA-256 of the whole text:
256 random bits need no slow hash, and who reads Redis learns no token.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

_SECRET_BYTES = 32
_SHAPE = re.compile(r"gs1_([0-9a-f]{32})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Token:
    """A fresh token; `text` goes to its client and nowhere else."""

    text: str = field(repr=False)
    digest: str = field(repr=False)


class Presented(NamedTuple):
    """What a token says of itself: true only once Redis knows the digest under that uid."""

    uid: str
    digest: str


def mint(uid: str) -> Token:
    """Make a new token of a Session; raises ValueError for a uid that Kubernetes gives nobody."""
    text = f"gs1_{UUID(uid).hex}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    return Token(text, _digest(text))


def parse(text: str) -> Presented | None:
    """Read a token without judging it; None if it is none of ours."""
    shaped = _SHAPE.fullmatch(text)
    if shaped is None:
        return None
    return Presented(str(UUID(hex=shaped[1])), _digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
