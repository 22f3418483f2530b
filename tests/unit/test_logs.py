"""Every line is one JSON object, says whose it is, and holds no secret."""

import asyncio
import json
import logging
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import structlog
from pydantic import SecretStr

from gpusession import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leave the logging of the test run as it was."""
    root = logging.getLogger()
    kept = root.level, root.handlers[:], logging.getLogger("kopf").level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = kept[1]
    root.setLevel(kept[0])
    logging.getLogger("kopf").setLevel(kept[2])
    structlog.reset_defaults()


def set_up() -> Any:
    """Set logging up at INFO and give a logger of ours."""
    logs.configure("INFO")
    return structlog.get_logger("gpusession.test")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Parse what was written to stderr."""
    written = capsys.readouterr()
    assert written.out == ""
    return [json.loads(line) for line in written.err.splitlines()]


def test_our_line_is_json_with_level_event_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """A fixed sentence and its fields come out as one object."""
    log = set_up()

    log.warning("release not verified", verdict="Held", bytes=7)

    (line,) = lines(capsys)
    expected = {"level": "warning", "event": "release not verified", "verdict": "Held", "bytes": 7}
    assert {key: line[key] for key in expected} == expected


def test_time_is_iso_8601_in_utc(capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of all processes sort by time."""
    log = set_up()

    log.info("hello")

    (line,) = lines(capsys)
    assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0)


def test_libraries_log_in_the_same_shape(capsys: pytest.CaptureFixture[str]) -> None:
    """A stdlib record with arguments becomes the same kind of object."""
    set_up()

    logging.getLogger("aiohttp.server").error("no %s for %d", "answer", 3)

    (line,) = lines(capsys)
    assert (line["event"], line["level"], line["logger"]) == (
        "no answer for 3",
        "error",
        "aiohttp.server",
    )


def test_kopf_is_heard_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Its word on every event of every object is left out."""
    set_up()

    logging.getLogger("kopf.objects").info("Handler succeeded")
    logging.getLogger("kopf.objects").warning("Patching failed")

    assert [line["event"] for line in lines(capsys)] == ["Patching failed"]


def test_level_applies_to_all(capsys: pytest.CaptureFixture[str]) -> None:
    """Below the level nothing is written, by us or by others."""
    logs.configure("ERROR")

    structlog.get_logger("gpusession").warning("quiet")
    logging.getLogger("kopf").warning("quiet")
    structlog.get_logger("gpusession").error("loud")

    assert [line["event"] for line in lines(capsys)] == ["loud"]


def test_unknown_level_is_an_error() -> None:
    """A level that is none is not taken for another."""
    with pytest.raises(ValueError, match="LOUD"):
        logs.configure("LOUD")


def test_second_set_up_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The set-up may be repeated."""
    log = set_up()

    logs.configure("INFO")

    log.info("once")

    assert len(lines(capsys)) == 1


def test_exception_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback does not break the rule of one object a line."""
    log = set_up()

    log.error("sweep failed", exc_info=RuntimeError("broken"))

    (line,) = lines(capsys)
    assert "RuntimeError: broken" in line["exception"]


def test_warnings_are_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Python's own warnings do not write past the formatter."""
    set_up()

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("soon gone", stacklevel=1)

    (line,) = lines(capsys)
    assert "soon gone" in line["event"]


def test_session_is_named_in_every_line_of_its_block(capsys: pytest.CaptureFixture[str]) -> None:
    """Our lines and those of libraries carry uid, namespace and name; later ones do not."""
    log = set_up()

    with logs.session_log("0a1b", "ns", "a"):
        log.info("inside")
        logging.getLogger("aiohttp").warning("inside too")
    log.info("outside")

    whose = [(x.get("uid"), x.get("namespace"), x.get("name")) for x in lines(capsys)]
    assert whose == [("0a1b", "ns", "a"), ("0a1b", "ns", "a"), (None, None, None)]


async def test_tasks_side_by_side_keep_their_sessions_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A worker's line never carries the uid of another worker's Session."""
    log = set_up()

    async def work(uid: str) -> None:
        with logs.session_log(uid, "ns", uid):
            await asyncio.sleep(0)
            log.info("working", expected=uid)

    await asyncio.gather(*(work(f"u{number}") for number in range(5)))

    assert all(line["uid"] == line["expected"] for line in lines(capsys))


@pytest.mark.parametrize(
    "fields",
    [
        {"token": "hunter2"},
        {"redis_password": "hunter2"},
        {"headers": {"Authorization": "Basic hunter2"}},
        {"url": "redis://user:hunter2@host:6379/0"},
        {"url": "redis://:hun@ter2/hunter2@host"},
        {"error": OSError("rediss://user:hunter2@host is gone")},
        {"header": "Bearer hunter2"},
        {"setting": SecretStr("hunter2")},
        {"quoted": 'redis://u:"hunter2@host'},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_secret_fields_are_cut_out(
    fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a telling field name nor credentials inside a text reach the log."""
    log = set_up()

    log.info("login", **fields)

    assert "hunter2" not in capsys.readouterr().err


def test_secrets_in_a_traceback_are_cut_out(capsys: pytest.CaptureFixture[str]) -> None:
    """What a library quotes in its exception is no exception."""
    log = set_up()

    log.error("no store", exc_info=OSError("cannot reach redis://user:hunter2@host"))

    written = capsys.readouterr().err
    assert "hunter2" not in written
    assert "@host" in written


def test_address_without_credentials_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """Only what is secret goes; an address is needed to find the fault."""
    log = set_up()

    log.info("connected", url="redis://host:6379/0", mail="a@b")

    (line,) = lines(capsys)
    assert line["url"] == "redis://host:6379/0"


def test_a_session_token_is_cut_out_wherever_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    """Libraries quote what they cannot read."""
    log = set_up()

    log.warning(
        "bad line: b'gs1_0f6ac3ae90a44f219b3c0a6b6f2d6a11_c2VjcmV0'", path="/v1/gs1_" + "0" * 76
    )

    assert "c2VjcmV0" not in str(lines(capsys))
