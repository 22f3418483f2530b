"""A gateway of the stack: its program and the ways to it."""

from dataclasses import dataclass

from tests.support.processes import Process
from tests.support.tcp_proxy import TcpProxy


@dataclass
class StackGateway:
    """One gateway: its program, where it listens, and its link to Redis if it has one."""

    process: Process
    port: int
    metrics_port: int
    link: TcpProxy | None

    @property
    def url(self) -> str:
        """Where clients come."""
        return f"http://127.0.0.1:{self.port}"
