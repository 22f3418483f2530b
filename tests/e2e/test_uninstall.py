"""Upgrade and uninstall, by the very commands of docs/upgrade-uninstall.md, with Sessions alive.

On a stack of its own. The tests leave it as they found it, but for the last one.
"""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.operator_stack import AGENTS, SYSTEM, OperatorStack
from tests.support.processes import ProcessFailedError
from tests.support.session_api import CRD, HUMAN, MANIFESTS
from tests.support.session_world import World
from tests.support.toolchain import REPOSITORY

pytestmark = pytest.mark.timeout(120)

PAGE = (REPOSITORY / "docs" / "upgrade-uninstall.md").read_text(encoding="utf-8")


def _commands(text: str) -> list[list[str]]:
    """Give the kubectl commands of a text, in order, without the word kubectl."""
    whole_line, quoted, after_or = (
        r"^kubectl .*$",
        r"(?<=`)kubectl [^`]*(?=`)",
        r"(?<=or: )kubectl .*$",
    )
    found = re.findall(f"{whole_line}|{quoted}|{after_or}", text, re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in found]


def _section(title: str) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


UPGRADE = _commands(_section("Upgrade"))
LIVENESS = _commands(_section("From a version without liveness"))
UNINSTALL = _commands(re.search(r"```sh\n(.*?)```", _section("Uninstall"), re.DOTALL)[1])
RESCUE = _commands(_section("Uninstall").partition("**If it has happened**")[2])


@pytest.fixture(scope="module")
def stack() -> Iterator[OperatorStack]:
    """Give the whole product on one simulated node, to be taken apart."""
    impatient = {"RESYNC_PERIOD": "PT5S", "RETRY_CAP": "PT1S", "AGENT_TIMEOUT": "PT5S"}
    with OperatorStack(nodes=("node-a",), controller_settings=impatient) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def folder(stack: OperatorStack) -> Path:
    """Give YOUR_FOLDER: all of manifests/ but the workloads, which the harness runs itself."""
    folder = stack.workdir / "folder"
    folder.mkdir()
    up = Path(*[".."] * (len(folder.resolve().parts) - 1))  # kustomize wants no "/..."
    gone = [
        {"$patch": "delete", "apiVersion": "apps/v1", "kind": kind, "metadata": metadata}
        for kind, metadata in (
            ("Deployment", {"name": "gpusession-controller", "namespace": SYSTEM}),
            ("Deployment", {"name": "gpusession-gateway", "namespace": SYSTEM}),
            ("DaemonSet", {"name": "gpusession-agent", "namespace": AGENTS}),
        )
    ]
    kustomization = {
        "resources": [str(up / MANIFESTS.relative_to("/"))],
        "patches": [{"patch": json.dumps(each)} for each in gone],
    }
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    return folder


def run(world: World, command: list[str], *, user: str = "") -> str:
    """Run a command of the page, its placeholders filled in."""
    folder = str(world.stack.workdir / "folder")
    words = {"YOUR_FOLDER": folder, "NAME": "stranded"}
    words |= {"NAMESPACE": world.namespace, "NS": world.namespace}
    argv = [words.get(word, word) for word in command]
    argv = [str(REPOSITORY / word) if word.startswith("crds/") else word for word in argv]
    return world.stack.plane.kubectl(*argv, *([f"--as={user}"] if user else [])).stdout


def test_an_upgrade_leaves_a_living_session_alone(world: World) -> None:
    """CRD, the rest, then new agents and controllers: the Session stays Active and ends well."""
    uid = world.start("lasting", "--memory=1Gi")["podUID"]
    born = world.processes(uid)

    for command in UPGRADE:
        run(world, command)
    for process in (world.node("node-a").agent, world.stack.controller):
        process.stop()
        process.start()
    world.stack.wait_controller_ready()

    assert world.status("lasting")["phase"] == "Active"
    assert all(b.lives for b in born)
    world.close("lasting")
    assert world.wait_phase("lasting", "Destroyed")["release"]["verdict"] == "Freed"


def test_whoever_upgrades_to_liveness_sees_and_changes_what_would_end(world: World) -> None:
    """The defaults are listed, only told of, and set to what the Session is, while it lives."""
    world.start("stranded", "--memory=1Gi")

    listed, labelled, _, _, unlabelled = (run(world, command) for command in LIVENESS)

    (row,) = [line.split() for line in listed.splitlines() if world.namespace in line]
    assert row[1:5] == ["stranded", "30", "1800", "43200"]
    assert ("labeled" in labelled, "unlabeled" in unlabelled) == (True, True)
    spec = (world.get("stranded") or {})["spec"]
    assert (spec["heartbeat"]["periodSeconds"], spec["idle"]["timeoutSeconds"]) == (0, 0)
    world.delete("stranded")
    world.wait_gone("stranded")


def test_a_session_without_a_controller_ends_once_there_is_one_again(world: World) -> None:
    """The way back from a hasty uninstall: nothing is lost, and the evidence comes in."""
    world.start("stranded", "--memory=1Gi")
    world.stack.controller.stop()
    world.kubectl("delete", "session", "stranded", "--timeout=2s", check=False)
    assert "deletionTimestamp" in (world.get("stranded") or {})["metadata"]

    world.stack.controller.start()

    world.wait_gone("stranded")


def test_the_last_resort_works_for_masters_and_for_nobody_else(world: World) -> None:
    """The page's own command, where the controller is gone for good."""
    world.start("stranded", "--memory=1Gi")
    world.stack.controller.stop()
    world.delete("stranded")
    (rescue,) = RESCUE

    with pytest.raises(ProcessFailedError, match=r"gpusession\.dev/release stays"):
        run(world, rescue, user=HUMAN)
    run(world, rescue)

    assert world.get("stranded") is None
    world.stack.controller.start()
    world.stack.wait_controller_ready()


def test_a_new_install_makes_up_for_a_deleted_namespace_of_the_controller(world: World) -> None:
    """Account, Lease and controller are gone at once; the next one finds the Session."""
    world.start("stranded", "--memory=1Gi")
    stack = world.stack
    stack.plane.kubectl("delete", "namespace", SYSTEM, "--timeout=60s")
    stack.controller.stop()
    world.delete("stranded")

    run(world, UPGRADE[-1])
    stack.controller = stack.controller_process(
        "controller-0", metrics_port=stack.controller_metrics_port
    )
    stack.controller.start()

    world.wait_gone("stranded")


def test_a_deleted_crd_ends_its_sessions_with_evidence(world: World) -> None:
    """The apiserver deletes every Session first, and the controller sees each of them off."""
    born = world.processes(world.start("swept", "--memory=1Gi")["podUID"])
    assert born

    kubectl = world.stack.plane.kubectl

    kubectl("delete", "-f", CRD, "--timeout=60s")

    assert not any(b.lives for b in born)
    kubectl("apply", "-f", CRD)
    world.wait(lambda: not kubectl("get", "sessions", check=False).returncode, "Sessions")
    world.stack.keep_controller()  # its watch may end on the way, and it with it
    world.start("next", "--memory=1Gi")


def test_the_page_uninstalls_everything_in_its_order(world: World) -> None:
    """Sessions first, while all runs; then nothing holds the rest back."""
    born = world.processes(world.start("last", "--memory=1Gi")["podUID"])
    end_all, show, take_away, *leftovers = UNINSTALL

    run(world, end_all)
    assert born
    assert not any(b.lives for b in born)
    assert run(world, show) == ""
    world.stack.controller.stop()
    world.node("node-a").agent.stop()
    now = ("--grace-period=0", "--force")  # the harness made it; no DaemonSet takes it away
    world.stack.plane.kubectl("delete", "pods", "--all", f"--namespace={AGENTS}", *now)
    run(world, take_away)
    for command in leftovers:
        run(world, command)

    names = run(
        world, ["get", "crds,namespaces,clusterroles,validatingadmissionpolicies", "-oname"]
    )
    assert "gpusession" not in names
