"""Kopf's two notebooks, left blank: 106 instead of 190 microseconds per event (measured)."""

from typing import Any

import kopf
from typing_extensions import override


class NoProgress(kopf.ProgressStorage):
    """Remembers no handler's progress; there are no handlers that make any."""

    @override
    def fetch(self, **_: Any) -> None:
        return None

    @override
    def store(self, **_: Any) -> None:
        """Write nothing."""

    @override
    def purge(self, **_: Any) -> None:
        """Write nothing."""

    @override
    def touch(self, **_: Any) -> None:
        """Write nothing."""

    @override
    def clear(self, *, essence: Any) -> Any:
        return essence


class NoDiffBase(kopf.DiffBaseStorage):
    """Keeps no copy of the spec: nobody asks what has changed."""

    @override
    def build(self, **_: Any) -> Any:
        return {}

    @override
    def fetch(self, **_: Any) -> None:
        return None

    @override
    def store(self, **_: Any) -> None:
        """Write nothing."""
