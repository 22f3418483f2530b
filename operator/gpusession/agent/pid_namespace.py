"""Proves that this process sees the pids that kubelet sees.

Outside kubelet's pid namespace NVML leaves processes out and reports success, so every
list would look clean. The kernel tells the pid of a unix socket's listener, and tells 0
where we cannot see it. Nothing overrides a failed proof.
"""

import asyncio
import socket
import struct
from datetime import timedelta
from pathlib import Path

_UCRED = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""


class PidNamespace:
    """Asks kubelet's pod-resources socket for its peer, anew each time."""

    def __init__(self, kubelet_socket: Path, *, timeout: timedelta) -> None:
        self._socket = kubelet_socket
        self._timeout = timeout

    async def doubt(self) -> str | None:
        """Tell why kubelet's pid namespace is not proven to be ours; None when it is."""
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                pid = await self._peer_pid()
        except (OSError, TimeoutError) as error:
            return f"pid namespace not proven: kubelet's socket {self._socket}: {error!r}"
        if pid <= 0:
            return "this agent is not in kubelet's pid namespace: it needs hostPID"
        return None

    async def _peer_pid(self) -> int:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(0)
            await asyncio.get_running_loop().sock_connect(probe, str(self._socket))
            peer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return int(_UCRED.unpack(peer)[0])
