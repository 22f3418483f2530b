"""`gpusession beat` from outside: what it says, and what its exit code means."""

import signal
from pathlib import Path

import pytest
from tests.support.beat_command import beat
from tests.support.client_rig import FakeGateway
from tests.support.processes import wait_until

from gpusession.cli import main


def test_once_is_one_call_and_no_connection(gateway: FakeGateway, tmp_path: Path) -> None:
    """A connection would end as a disconnect, whose grace would end the Session."""
    with beat(gateway, tmp_path, "--once") as command:
        assert command.wait(15) == 0

    assert gateway.count("http", path="/v1/heartbeat") == 1
    assert gateway.count("connect") == 0


@pytest.mark.parametrize(
    ("option", "body"),
    [("--activity", '{"busySeconds":0.0}'), ("--busy", '{"busySeconds":120.0}')],
    ids=["activity", "busy"],
)
def test_once_may_be_an_activity(
    gateway: FakeGateway, tmp_path: Path, option: str, body: str
) -> None:
    """A script says that its user did something."""
    with beat(gateway, tmp_path, "--once", option) as command:
        assert command.wait(15) == 0

    assert [call["body"] for call in gateway.seen("http", path="/v1/activity")] == [body]


def test_once_with_a_refused_token_says_so(gateway: FakeGateway, tmp_path: Path) -> None:
    """Exit code 4 and one line, without the token."""
    gateway.rules(status=403)
    with beat(gateway, tmp_path, "--once") as command:
        code, said = command.wait(15), command.log_tail()

    assert (code, "token-0" in said) == (4, False)
    assert "gpusession beat: the gateway refused the token" in said


def test_token_is_made_for_a_named_session(gateway: FakeGateway, tmp_path: Path) -> None:
    """With the pod's projected token; the Session is named to the gateway too."""
    (tmp_path / "kube").write_text("kube-0")
    words = ["--namespace", "default", "--session", "chat", "--kubernetes-token-file", "kube"]
    with beat(gateway, tmp_path, *words):
        wait_until(lambda: gateway.count("connect") == 1, timeout=15, what="a connection")

    assert gateway.seen("connect")[0]["session"] == "default/chat"
    assert gateway.seen("connect")[0]["token"] == "token-1"


def test_it_beats_until_it_is_stopped(gateway: FakeGateway, tmp_path: Path) -> None:
    """SIGTERM is how it is meant to end: 0, and a disconnect, no close."""
    with beat(gateway, tmp_path) as command:
        wait_until(lambda: gateway.count("frame", type="beat") > 2, timeout=15, what="beats")
        command.signal(signal.SIGTERM)
        assert command.wait(10) == 0

    assert gateway.count("frame", type="close") == 0


def test_it_closes_the_session_where_that_is_asked(gateway: FakeGateway, tmp_path: Path) -> None:
    """Stopping it then ends the Session."""
    with beat(gateway, tmp_path, "--close-on-exit") as command:
        wait_until(lambda: gateway.count("connect") == 1, timeout=15, what="a connection")
        command.signal(signal.SIGTERM)
        assert command.wait(10) == 0

    assert gateway.count("frame", type="close") == 1


def test_end_of_the_session_is_exit_code_3(gateway: FakeGateway, tmp_path: Path) -> None:
    """With the reason in its last line."""
    with beat(gateway, tmp_path) as command:
        wait_until(lambda: gateway.count("frame") > 0, timeout=15, what="a beat")
        gateway.hang_up(4410, "Idle")
        assert command.wait(10) == 3

    assert "has ended: Idle" in command.log_tail()


@pytest.mark.parametrize(
    "words",
    [
        ["--url", "http://g"],
        ["--url", "http://u:secret@g", "--token-file", "f"],
        ["--url", "http://g", "--token-file", "f", "--once", "--", "true"],
        ["--url", "http://g", "--token-file", "f", "--ca-file", "/nowhere"],
    ],
    ids=["no token", "user in the address", "once with a command", "no such CA"],
)
def test_wrong_words_are_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is begun, and without what may be secret."""
    with pytest.raises(SystemExit) as exit_:
        main(["beat", *words])

    assert exit_.value.code == 2
    assert "secret" not in capsys.readouterr().err
