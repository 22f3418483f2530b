"""Follows Sessions as any client would, and keeps the last state of each, also of the gone."""

import json
import subprocess
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple, Self

Object = dict[str, Any]


class Sight(NamedTuple):
    """What one event of the watch showed of a Session."""

    phase: str
    reason: str
    released: str
    """The reason of GPUReleased; DestroyGrace where nothing has begun that cannot be undone."""
    is_deleted: bool

    @property
    def is_end(self) -> bool:
        """Tell whether the Session ends or has ended."""
        return self.is_deleted or self.phase in ("PendingDestroy", "Destroyed")


class SessionFollower:
    """Runs `kubectl get sessions --watch` in the background of a with block."""

    def __init__(self, kubectl: Path, kubeconfig: Path, namespace: str) -> None:
        self._command = [
            *(str(kubectl), f"--kubeconfig={kubeconfig}", "get", "sessions", "-n", namespace),
            *("--watch", "--output-watch-events", "-o", "json"),
        ]
        self._lock = threading.Lock()
        self._last: dict[str, Object] = {}
        self._gone: set[str] = set()
        self._history: defaultdict[str, list[Sight]] = defaultdict(list)

    def __enter__(self) -> Self:
        self._program = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, name="follow sessions", daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._program.kill()
        self._program.wait()
        self._reader.join()
        if self._program.stdout is not None:
            self._program.stdout.close()

    @property
    def has_ended(self) -> bool:
        """Whether kubectl gave up, so that nothing more will be seen."""
        return self._program.poll() is not None

    def sessions(self) -> list[Object]:
        """Give the last state of every Session ever seen, by name."""
        with self._lock:
            return [self._last[name] for name in sorted(self._last)]

    def phases(self) -> dict[str, str]:
        """Give the last phase of every Session."""
        return {s["metadata"]["name"]: phase_of(s) for s in self.sessions()}

    def history(self, name: str) -> list[Sight]:
        """Give everything that was ever shown of a Session, in order."""
        with self._lock:
            return list(self._history[name])

    def is_gone(self, name: str) -> bool:
        """Tell whether the object was deleted for good."""
        with self._lock:
            return name in self._gone

    def _read(self) -> None:
        decoder, text = json.JSONDecoder(), ""
        stream = self._program.stdout
        if stream is None:
            return
        for line in stream:
            text += line
            while text.lstrip():
                try:
                    event, end = decoder.raw_decode(text.lstrip())
                except ValueError:
                    break
                text = text.lstrip()[end:]
                self._take(event)

    def _take(self, event: Object) -> None:
        found = event["object"]
        name = found["metadata"]["name"]
        with self._lock:
            self._last[name] = found
            self._history[name].append(_sight(found, is_deleted=event["type"] == "DELETED"))
            if event["type"] == "DELETED":
                self._gone.add(name)


def phase_of(session: Object) -> str:
    """Give the phase, or an empty string before the first status."""
    return session.get("status", {}).get("phase", "")


def _sight(session: Object, *, is_deleted: bool) -> Sight:
    status = session.get("status", {})
    conditions = {c["type"]: c["reason"] for c in status.get("conditions", [])}
    return Sight(
        phase_of(session),
        status.get("reason", ""),
        conditions.get("GPUReleased", ""),
        is_deleted or "deletionTimestamp" in session["metadata"],
    )
