"""`gpusession beat`: the heartbeat of a Session for anything that a shell can start."""

import argparse
import asyncio
import shlex
import ssl
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from gpusession import logs
from gpusession.client.backoff import Timing
from gpusession.client.child import CannotStartError
from gpusession.client.credentials import KUBERNETES_TOKEN_FILE, KubernetesIdentity
from gpusession.client.errors import ClientError, GaveUp, SessionEnded
from gpusession.client.opening import TokenSource, calling, credentials_for, gateway_base, hold
from gpusession.client.session import BUSY_LEASE
from gpusession.client.sidecar import Wishes, attend
from gpusession.client.single import Single

UNREACHABLE, ENDED, REFUSED = 1, 3, 4
"""Exit codes where there is no COMMAND to give its own; 0 is for "killed, as asked"."""

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

_STORY = """\
Without COMMAND it beats until it is killed (0), the Session ends (3), or the token is refused
for good (4). With COMMAND its exit code is passed on, signals are forwarded to it, and it gets
SIGTERM when the Session ends. The command starts at once; it never waits for a gateway.
"""


def main(argv: Sequence[str]) -> int:
    """Run `gpusession beat` and return its exit code."""
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    parser = _parser()
    asked = parser.parse_args(words[:cut])
    command = words[cut + 1 :]
    if asked.once and command:
        parser.error("--once takes no COMMAND")
    try:
        gateway_base(asked.url)
        source = _source(asked)
        tls = ssl.create_default_context(cafile=asked.ca_file) if asked.ca_file else None
    except (ValueError, OSError) as error:
        parser.error(str(error))
    logs.configure(asked.log_level)
    work = _once(asked, source, tls) if asked.once else _keep(asked, source, tls, command)
    return asyncio.run(_ended_well(work))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpusession beat",
        usage="%(prog)s --url URL [options] [-- COMMAND ARGS...]",
        description="Keep a Session's heartbeat.",
        epilog=_STORY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--url", required=True, help="the gateway, http(s)://host[:port]")
    add("--ca-file", type=Path, metavar="F", help="CA of the gateway's certificate")
    add("--token-file", type=Path, metavar="F", help="a file with the Session's token")
    add("--namespace", metavar="N", help="the Session's namespace; the pod's own by default")
    add("--session", metavar="S", help="the Session's name; a token is made for it")
    add("--token-command", metavar="C", help="prints such a token; split as a shell would")
    add(
        "--kubernetes-token-file",
        type=Path,
        metavar="F",
        default=KUBERNETES_TOKEN_FILE,
        help="a Kubernetes token of audience gpusession-gateway (default: %(default)s)",
    )
    add("--activity", action="store_true", help="every beat is an activity too: never idle")
    add("--busy", action="store_true", help="hold a busy lease: idle only minutes after a crash")
    add("--once", action="store_true", help="one beat, or one activity, and no connection")
    add("--close-on-exit", action="store_true", help="end the Session when this ends")
    add("--keep-command", action="store_true", help="no SIGTERM when the Session ends")
    add("--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR"], default="WARNING")
    return parser


def _source(asked: argparse.Namespace) -> TokenSource:
    if asked.session is not None and asked.namespace is None:
        asked.namespace = _NAMESPACE_FILE.read_text().strip()
    if asked.token_file is not None:
        return Path(asked.token_file)
    if asked.session is None:
        raise ValueError("either --token-file or --session is needed")
    return KubernetesIdentity(
        asked.namespace,
        asked.session,
        token_file=asked.kubernetes_token_file,
        token_command=shlex.split(asked.token_command) if asked.token_command else None,
    )


def _named(asked: argparse.Namespace) -> str | None:
    return None if asked.session is None else f"{asked.namespace}/{asked.session}"


async def _ended_well(work: Coroutine[Any, Any, int]) -> int:
    try:
        return await work
    except CannotStartError as error:
        _say(error)
        return error.code
    except ClientError as error:
        _say(error)
        return _code(error)


def _code(error: ClientError) -> int:
    match error:
        case SessionEnded():
            return ENDED
        case GaveUp():
            return REFUSED
        case _:
            return UNREACHABLE


async def _once(asked: argparse.Namespace, source: TokenSource, tls: ssl.SSLContext | None) -> int:
    timing = Timing()
    async with calling(asked.url, tls=tls, timing=timing) as calls:
        credentials = credentials_for(source, calls, timing)
        single = Single(calls, credentials, session=_named(asked), timing=timing)
        if asked.busy:
            await single.activity(BUSY_LEASE)
        else:
            await (single.activity() if asked.activity else single.beat())
        if asked.close_on_exit:
            await single.close()
    return 0


async def _keep(
    asked: argparse.Namespace,
    source: TokenSource,
    tls: ssl.SSLContext | None,
    command: Sequence[str],
) -> int:
    wishes = Wishes(
        activity=asked.activity,
        busy=asked.busy,
        close_on_exit=asked.close_on_exit,
        keep_command=asked.keep_command,
    )
    async with hold(asked.url, source, session=_named(asked), tls=tls) as session:
        return await attend(session, wishes, command)


def _say(error: Exception) -> None:
    sys.stderr.write(f"gpusession beat: {error}\n")
