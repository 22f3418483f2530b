"""docs/clients.md is true: its lines run as they stand, its tables are complete."""

import asyncio
import os
import re
from pathlib import Path

import pytest
from tests.support.fake_apiserver import FakeApiserver
from tests.support.gateway_rig import Known, StartGateway
from tests.support.records import watch
from tests.support.redis_server import RedisServer
from tests.support.toolchain import REPOSITORY

from gpusession.api.frames import CloseCode, RefusalReason
from gpusession.gateway.refusals import STATUS

TEXT = (REPOSITORY / "docs" / "clients.md").read_text(encoding="utf-8")


async def test_the_lines_of_the_docs_run_as_they_stand(
    own_redis: RedisServer, start_gateway: StartGateway, tmp_path: Path
) -> None:
    """With real curl, from the first token to the last revocation."""
    chat = Known("0f6ac3ae-90a4-4f21-9b3c-0a6b6f2d6a11", "chat", "")
    async with FakeApiserver() as apiserver:
        apiserver.tokens["kube"] = ("my-client", ["gpusession-gateway"])
        apiserver.allowed |= {
            ("my-client", "create", "default", "chat"),
            ("my-client", "delete", "default", ""),
        }
        front = await start_gateway(
            own_redis, kubeconfig=apiserver.write_kubeconfig(tmp_path / "kubeconfig")
        )
        await watch(front.redis)
        await front.reopen(chat, user="ada", namespace="default")
        lines = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL))
        said = await _run(lines, GATEWAY=front.gateway.url, KUBE_TOKEN="kube")

    record = await front.record(chat)
    assert said.count('"name":"chat","phase":"Active"') == 2
    assert said.endswith('{"revoked":1}')
    assert (record.close, record.rev, record.busy is not None) == (True, True, True)


async def _run(lines: str, **env: str) -> str:
    shell = await asyncio.create_subprocess_exec(
        "bash",
        "-euo",
        "pipefail",
        "-c",
        lines,
        env={"PATH": os.environ["PATH"], **env},
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await shell.communicate()
    assert shell.returncode == 0
    return said.decode()


@pytest.mark.parametrize("code", CloseCode, ids=lambda code: str(int(code)))
def test_every_close_code_is_told(code: CloseCode) -> None:
    """A client's author looks here first."""
    assert f"\n| {int(code)} |" in TEXT


@pytest.mark.parametrize("reason", RefusalReason)
def test_every_reason_stands_in_a_row_with_its_status(reason: RefusalReason) -> None:
    """As the gateway answers it."""
    rows = [row for row in TEXT.splitlines() if re.search(rf"\b{reason}\b", row)]

    assert any(row.startswith("| ") and str(int(STATUS[reason])) in row for row in rows)
