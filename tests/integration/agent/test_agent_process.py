"""The agent as a process of its own: TLS, signals, and SIGKILL in the middle of a release."""

import asyncio
import os
import signal
import sqlite3
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from tests.support.agent_rig import GIB, NODE, AgentRig, RunningPod
from tests.support.cluster import until
from tests.support.pki import CertificateAuthority
from tests.support.processes import free_port
from tests.support.toolchain import REPOSITORY

from gpusession.agent_client import AgentClient
from gpusession.api.release import ReleaseReport, ReleaseRequest, ReleaseResponse, Verdict
from gpusession.api.usage import Busy

CONTROLLER = "system:serviceaccount:gpusession-system:gpusession-controller"


class AgentProcess:
    """`gpusession agent` on the rig's node; it can be killed and started again."""

    def __init__(self, rig: AgentRig, library: Path) -> None:
        self.rig = rig
        self.port, self.metrics_port = free_port(), free_port()
        self.ledger = rig.root / "process.sqlite"
        authority = CertificateAuthority(rig.root)
        tls = authority.issue("agent", sans=["localhost", "127.0.0.1"])
        self._trust = ssl.create_default_context(cafile=authority.ca_file)
        settings = {
            "NODE_NAME": NODE,
            "LISTEN_HOST": "127.0.0.1",
            "PORT": self.port,
            "METRICS_PORT": self.metrics_port,
            "KUBECONFIG": rig.apiserver.write_kubeconfig(rig.root / "kubeconfig"),
            "TLS_CERT_FILE": tls.cert,
            "TLS_KEY_FILE": tls.key,
            "LEDGER_FILE": self.ledger,
            "POD_RESOURCES_SOCKET": rig.socket,
            "DEMO_MODE": "true",
            "PROC_ROOT": rig.root / "proc",
            "CGROUP_ROOT": rig.root / "cgroup",
        }
        self.environment = {f"GPUSESSION_{name}": str(value) for name, value in settings.items()}
        self.environment |= rig.node.environment(library) | {
            "PYTHONPATH": str(REPOSITORY / "operator"),
            "PATH": os.environ["PATH"],
        }
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it is ready."""
        argv = (sys.executable, "-m", "gpusession", "agent")
        self.process = await asyncio.create_subprocess_exec(*argv, env=self.environment)
        async with aiohttp.ClientSession() as session:
            for _ in range(400):
                with suppress(aiohttp.ClientError):
                    url = f"http://127.0.0.1:{self.metrics_port}/readyz"
                    async with session.get(url) as answer:
                        if answer.status == 200:
                            return
                assert self.process.returncode is None, "the agent ended"
                await asyncio.sleep(0.05)
        raise AssertionError("the agent is not ready")

    async def signal(self, number: int) -> int:
        """Signal it and wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        return await self.process.wait()

    async def post(self, path: str, words: msgspec.Struct) -> bytes:
        """Call it as the controller."""
        url = f"https://127.0.0.1:{self.port}{path}"
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                url,
                data=msgspec.json.encode(words),
                headers={"Authorization": "Bearer good"},
                ssl=self._trust,
            ) as answer,
        ):
            assert answer.status == 200, await answer.text()
            return await answer.read()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AgentClient]:
        """Give the controller's client, which knows this agent alone."""
        token = self.rig.root / "token"
        token.write_text("good")
        client = AgentClient(
            {NODE: f"https://127.0.0.1:{self.port}"}.get,
            tls=lambda: self._trust,
            server_name="localhost",
            token_file=token,
            timeout=timedelta(seconds=5),
        )
        yield client
        await client.close()

    async def release(self, pod: RunningPod, **more: Any) -> ReleaseReport:
        """Order one release."""
        request = ReleaseRequest(releases=(self.rig.order(pod, **more),))
        body = await self.post("/v1/releases", request)
        return msgspec.json.decode(body, type=ReleaseResponse).reports[0]


@pytest.fixture
async def agent(rig: AgentRig, simulated_nvml: Path) -> AsyncIterator[AgentProcess]:
    """Give a running agent process; the rig's own agent objects stay idle."""
    rig.apiserver.tokens["good"] = (CONTROLLER, ["gpusession-agent"])
    agent = AgentProcess(rig, simulated_nvml)
    await agent.start()
    yield agent
    if agent.process is not None and agent.process.returncode is None:
        await agent.signal(signal.SIGKILL)


async def _intent(ledger: Path) -> None:
    """Wait until the write-ahead log of the other process holds a begun release."""
    for _ in range(500):
        if b"releasing" in ledger.with_name(ledger.name + "-wal").read_bytes():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("no intent on disk")


async def test_kill_9_between_intent_and_done_loses_nothing(agent: AgentProcess) -> None:
    """The next agent finishes the release, and knows the bytes that were held before."""
    pod = await agent.rig.start_pod("pod", "--ignore-sigterm")
    await agent.post("/v1/bind", agent.rig.bind_request(pod))
    caller = asyncio.create_task(agent.release(pod, termination_grace_period_seconds=10))
    await _intent(agent.ledger)
    await agent.signal(signal.SIGKILL)
    await asyncio.wait([caller])
    os.kill(agent.rig.pids(pod)[0], signal.SIGKILL)
    await pod.shim.wait()
    await agent.start()

    report = await agent.release(pod)
    repeat = await agent.release(pod)

    assert isinstance(caller.exception(), aiohttp.ClientError)
    assert (report.verdict, report.attempts) == (Verdict.FREED, 2)
    assert report.memory_bytes_before == 6 * GIB
    assert repeat == report


async def test_kill_9_after_the_verdict_forgets_no_pod(agent: AgentProcess) -> None:
    """What kubelet started behind the verdict is ended by the next agent."""
    pod = await agent.rig.start_pod()
    await agent.post("/v1/bind", agent.rig.bind_request(pod))
    deleted = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    agent.rig.apiserver.add_pod(pod.name, uid=pod.uid, node=NODE, use="exclusive", **deleted)
    assert (await agent.release(pod)).verdict is Verdict.FREED
    await agent.signal(signal.SIGKILL)
    again = agent.rig.restart(pod)

    await agent.start()

    await until(lambda: again.shim.has_exited, what="the second container's end")


async def test_sigterm_lets_a_release_in_flight_finish(agent: AgentProcess) -> None:
    """Its caller still gets the verdict, and the process ends with 0."""
    pod = await agent.rig.start_pod("pod", "--ignore-sigterm")
    await agent.post("/v1/bind", agent.rig.bind_request(pod))
    caller = asyncio.create_task(agent.release(pod, termination_grace_period_seconds=1))
    await _intent(agent.ledger)

    code = await agent.signal(signal.SIGTERM)

    assert (await caller).verdict is Verdict.FREED
    assert code == 0
    with sqlite3.connect(agent.ledger) as ledger:
        assert ledger.execute("SELECT state FROM sessions").fetchall() == [("done",)]
    ledger.close()


async def test_usage_over_tls_says_who_is_busy(agent: AgentProcess) -> None:
    """The observer of the real process looks, and the controller's client reads the answer."""
    await agent.signal(signal.SIGTERM)
    agent.environment["GPUSESSION_OBSERVE_PERIOD"] = "PT0.2S"
    await agent.start()
    pod = await agent.rig.start_pod("pod", "--busy", "60")
    await agent.post("/v1/bind", agent.rig.bind_request(pod))

    async with asyncio.timeout(10), agent.client() as client:
        while not (report := await client.usage(NODE)).sessions[0].utilization_percent:
            await asyncio.sleep(0.1)

    [session] = report.sessions
    assert (report.boot_id, session.session_uid) == (agent.rig.boot_id, "session-1")
    assert (session.busy, session.utilization_percent) == (Busy.BUSY, 60)


async def test_other_roots_are_refused_outside_demo_mode(agent: AgentProcess) -> None:
    """The shipped image reads the kernel's /proc and cgroups and nothing else."""
    await agent.signal(signal.SIGTERM)
    del agent.environment["GPUSESSION_DEMO_MODE"]
    argv = (sys.executable, "-m", "gpusession", "agent")

    process = await asyncio.create_subprocess_exec(
        *argv, env=agent.environment, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()

    assert process.returncode == 2
    assert said.decode().count("\n") == 1
    assert "demo mode" in said.decode()
