"""`make demo`: starts everything, tells the story, checks it from outside, leaves nothing.

Exit code 1 if a byte, key, process or finalizer is left that should not be, if a Session
ended that should not have, or did not that should have. The last line of stdout is JSON.
"""

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from tests.demo import liveness, story
from tests.demo.follow import SessionFollower
from tests.demo.outcome import Outcome
from tests.demo.table import console
from tests.support import assets
from tests.support.clients_world import ClientsWorld
from tests.support.operator_stack import OperatorStack
from tests.support.processes import ProcessFailedError
from tests.support.stack_diagnosis import diagnosis


def main() -> int:
    """Run the demo; with --keep, a process in the background holds the stack afterwards."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(description="The GPU session operator, live.")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    parser.add_argument("--picture", type=Path, metavar="SVG", help="draw what was told")
    asked = parser.parse_args()
    if asked.keep:
        return _keeping()
    with _stack() as (stack, clients):
        ok, line = _tell(stack, clients)
    if asked.picture:
        _draw(asked.picture)
    print(line, flush=True)
    return 0 if ok else 1


def _draw(picture: Path) -> None:
    """Keep what was told as a picture that loads nothing: its font is the reader's own."""
    svg = console.export_svg(title="make demo")
    picture.write_text(re.sub(r"@font-face \{[^}]*\}", "", svg).replace("Fira Code", "monospace"))


@contextmanager
def _stack(workdir: Path | None = None) -> Iterator[tuple[OperatorStack, ClientsWorld]]:
    """Start everything, with periods so short that an end can be waited for."""
    with OperatorStack(
        workdir=workdir,
        controller_settings=liveness.CONTROLLER,
        agent_settings=liveness.AGENTS,
        gateways=2,
        gateway_settings=liveness.GATEWAYS,
    ) as stack:
        clients = ClientsWorld(stack, liveness.NAMESPACE)
        try:
            yield stack, clients
        finally:
            clients.end_clients()


def _tell(stack: OperatorStack, clients: ClientsWorld) -> tuple[bool, str]:
    outcome = Outcome()
    with _follower(stack, story.NAMESPACE) as first, _follower(stack, clients.namespace) as second:
        try:
            story.Story(stack, first).tell(outcome)
            act = liveness.SecondAct(stack, second, clients)
            act.tell(outcome, first, (story.STAYS,))
        except (TimeoutError, ProcessFailedError) as error:
            outcome.faults.append(str(error))
        if not outcome.ok:
            console.print(diagnosis(stack), markup=False, highlight=False, soft_wrap=True)
    for fault in outcome.all_faults:
        console.print(f"[red]fault:[/] {fault}")
    verdict = "[green]the right ones ended, none else, and nothing is left[/]"
    verdict = verdict if outcome.ok else "[red]failed[/]"
    console.print(f"checked by raw NVML, Redis, /proc and kubectl: {verdict}")
    return outcome.ok, outcome.line()


def _follower(stack: OperatorStack, namespace: str) -> SessionFollower:
    kubectl = assets.kubernetes_assets() / "kubectl"
    return SessionFollower(kubectl, stack.plane.admin_kubeconfig, namespace)


def _keeping() -> int:
    """Let a child of its own session run the stack; return when the story is told."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader) as told:
            answer = told.read(1)
        return 0 if answer == "0" else 1
    os.close(reader)
    os.setsid()
    workdir = Path(tempfile.mkdtemp(prefix="gpusession-demo-"))
    try:
        _hold(writer, workdir)
    except SystemExit:
        shutil.rmtree(workdir, ignore_errors=True)
        os._exit(0)
    except BaseException:  # noqa: BLE001 - the last frame of a forked child
        traceback.print_exc()
        os.write(writer, b"1")
        os._exit(1)


def _hold(writer: int, workdir: Path) -> NoReturn:
    with _stack(workdir) as (stack, clients):
        ok, line = _tell(stack, clients)
        _say_how_to_go_on(stack)
        print(line, flush=True)
        log = os.open(workdir / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for standard in (sys.stdin.fileno(), sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(log, standard)
        code = "0" if ok else "1"
        os.write(writer, code.encode())
        os.close(writer)
        while True:
            signal.pause()  # until SIGTERM unwinds the with block


def _say_how_to_go_on(stack: OperatorStack) -> None:
    kubectl = assets.kubernetes_assets() / "kubectl"
    print(
        f"""
The cluster stays up; its files are in {stack.workdir}.
export KUBECONFIG={stack.plane.admin_kubeconfig} PATH={kubectl.parent}:$PATH
  kubectl get sessions -n {story.NAMESPACE} -o wide
  kubectl explain session.spec
  kubectl delete session training -n {story.NAMESPACE}
Stop it with: kill {os.getpid()}""",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
