"""Cgroup paths as kubelets of all kinds name them, in files recorded or made here."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from gpusession.agent.cgroups import PodCgroups, place_of

UID = "0b1c2d3e-4f50-4617-8899-aabbccddeeff"
LONGER = "0b1c2d3e-4f50-4617-8899-aabbccddeef0"
UNDERSCORED = UID.replace("-", "_")

RECORDED = yaml.safe_load(
    (Path(__file__).parents[2] / "data" / "agent" / "cgroup_files.yaml").read_text()
)


def _make(root: Path, cgroup: str, *pids: int) -> Path:
    directory = root / cgroup
    directory.mkdir(parents=True)
    (directory / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    return directory


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["name"])
def test_place(recorded: dict[str, Any]) -> None:
    """The Pod comes out of every layout, and never out of a path that only looks like one."""
    place = place_of(recorded["text"])

    assert place.pods == frozenset(recorded["pods"])
    assert place.is_known == recorded["known"]


@pytest.mark.parametrize(
    "cgroup",
    [
        f"kubepods/pod{UID}/a",
        f"kubepods/burstable/pod{UID}/a",
        f"rc-node-1/kubepods/besteffort/pod{UID}/a/nested/deeper",
        f"kubepods.slice/kubepods-pod{UNDERSCORED}.slice/crio-a.scope",
        f"kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice/a",
        f"pids/kubepods/pod{UID}/a",
    ],
)
def test_members_are_found_in_every_layout(tmp_path: Path, cgroup: str) -> None:
    """All pids at and below the Pod's cgroup are its members."""
    _make(tmp_path, cgroup, 10, 11)

    assert PodCgroups(tmp_path).members(UID).pids == {10, 11}


def test_members_of_all_controllers_are_joined(tmp_path: Path) -> None:
    """On v1 a Pod has one cgroup for each controller."""
    _make(tmp_path, f"pids/kubepods/pod{UID}/a", 10)
    _make(tmp_path, f"memory/kubepods/pod{UID}/a", 10, 11)

    assert PodCgroups(tmp_path).members(UID).pids == {10, 11}


def test_another_uid_with_a_common_start_is_another_pod(tmp_path: Path) -> None:
    """Uids are compared whole."""
    _make(tmp_path, f"kubepods/pod{LONGER}/a", 10)
    _make(tmp_path, f"kubepods/pod{UID}-x/a", 11)

    assert PodCgroups(tmp_path).members(UID).pids == frozenset()


def test_pid_0_is_hidden_not_missing(tmp_path: Path) -> None:
    """The kernel lists members outside our pid namespace as 0: somebody is there."""
    _make(tmp_path, f"kubepods/pod{UID}/a", 0, 0, 12)

    members = PodCgroups(tmp_path).members(UID)

    assert (members.pids, members.hidden) == ({12}, 2)


def test_a_list_that_cannot_be_read_is_not_empty(tmp_path: Path) -> None:
    """Out of file descriptors, say: nobody may conclude that the Pod's processes are gone."""
    listed = _make(tmp_path, f"kubepods/pod{UID}/a") / "cgroup.procs"
    listed.unlink()
    listed.mkdir()

    with pytest.raises(OSError, match="directory"):
        PodCgroups(tmp_path).members(UID)


def test_a_directory_that_went_away_is_looked_for_again(tmp_path: Path) -> None:
    """What was found once is believed only while it exists."""
    cgroups = PodCgroups(tmp_path)
    first = _make(tmp_path, f"kubepods/pod{UID}", 10)
    cgroups.members(UID)
    (first / "cgroup.procs").unlink()
    first.rmdir()
    _make(tmp_path, f"elsewhere/pod{UID}", 11)

    assert cgroups.members(UID).pids == {11}


def _with_kill(directory: Path) -> Path:
    (directory / "cgroup.kill").write_text("")
    return directory / "cgroup.kill"


def test_kill_writes_to_the_pods_containers_alone(tmp_path: Path) -> None:
    """Not to those of neighbours, and to the Pod's own never: it takes the sandbox along.

    Plain files stand for the kernel's; tests/integration has those.
    """
    first, second = (_with_kill(_make(tmp_path, f"k/pod{UID}/{name}", 10)) for name in "ab")
    nested = _with_kill(_make(tmp_path, f"k/pod{UID}/b/nested", 11))
    others = [_with_kill(tmp_path / "k"), _with_kill(tmp_path / f"k/pod{UID}")]
    others += [_with_kill(_make(tmp_path, f"k/pod{LONGER}/a", 12))]

    PodCgroups(tmp_path).kill(UID, spares=lambda _: False)

    assert (first.read_text(), second.read_text()) == ("1", "1")
    assert [file.read_text() for file in (nested, *others)] == [""] * 4


@pytest.mark.parametrize("spared", [10, 11], ids=["in it", "nested in it"])
def test_a_container_with_somebody_to_spare_is_left_out(tmp_path: Path, spared: int) -> None:
    """Its file reaches the cgroups below as well."""
    kept, other = (_with_kill(_make(tmp_path, f"k/pod{UID}/{name}")) for name in "ab")
    (kept.parent / "cgroup.procs").write_text("10\n")
    (other.parent / "cgroup.procs").write_text("12\n")
    _make(tmp_path, f"k/pod{UID}/a/nested", 11)

    PodCgroups(tmp_path).kill(UID, spares=lambda pid: pid == spared)

    assert (kept.read_text(), other.read_text()) == ("", "1")


def test_without_the_files_nothing_is_written_or_said(tmp_path: Path) -> None:
    """On v1 there is none, and none is made."""
    container = _make(tmp_path, f"pids/kubepods/pod{UID}/a", 10)

    with capture_logs() as said:
        PodCgroups(tmp_path).kill(UID, spares=lambda _: False)

    assert [file.name for file in container.iterdir()] == ["cgroup.procs"]
    assert said == []


def test_a_refusal_is_said_once(tmp_path: Path) -> None:
    """Who mounted cgroups read-only, or took away uid 0, learns what that costs."""
    for name in "ab":
        (_make(tmp_path, f"k/pod{UID}/{name}", 10) / "cgroup.kill").mkdir()  # not to be opened
    cgroups = PodCgroups(tmp_path)

    with capture_logs() as said:
        cgroups.kill(UID, spares=lambda _: False)
        cgroups.kill(UID, spares=lambda _: False)

    assert [each["log_level"] for each in said] == ["warning"]
