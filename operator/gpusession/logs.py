"""Logging: one JSON object a line on stderr, ours and that of every library.

`main.py` of each process calls `configure` once. It is the lowest layer of all and imports
nothing of ours. Whatever looks like a secret is cut out before a line is written.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

REDACTED = "[redacted]"

_SECRET_NAME = re.compile(
    r"token|passw|secret|authorization|cookie|credential|dsn|redis_url", re.IGNORECASE
)
_SECRET_TEXT = re.compile(
    r"(?<=://)(?:[^\s\"\\]|\\[^nrt])+(?=@)"  # user and password of a URL, inside JSON text
    r"|(?<=bearer )[\w.~+/=-]+"
    r"|(?<=gs1_)[\w-]{8,}",  # a Session token, wherever it stands (tokens.py)
    re.IGNORECASE,
)


def configure(level: str) -> None:
    """Send all logging of this process to stderr as JSON, from `level` on.

    Raises ValueError for a level that is none. It may be called again.
    """
    root = logging.getLogger()
    root.setLevel(level)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.stdlib.PositionalArgumentsFormatter(),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter(shared))
    root.handlers[:] = [handler]
    # Kopf tells of every event of every object at INFO.
    logging.getLogger("kopf").setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(capture=True)


def session_log(uid: str, namespace: str, name: str) -> AbstractContextManager[None]:
    """Name this Session in every line that the with block logs, tasks it starts included."""
    return structlog.contextvars.bound_contextvars(uid=uid, namespace=namespace, name=name)


def _formatter(shared: list[Processor]) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _render,
        ],
    )


def _render(_: WrappedLogger, __: str, fields: EventDict) -> str:
    head = {key: fields.pop(key) for key in ("time", "level", "event")}
    line = json.dumps(_redact({**head, **fields}), default=repr)
    return _SECRET_TEXT.sub(REDACTED, line)


def _redact(fields: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): _redact_value(str(key), value) for key, value in fields.items()}


def _redact_value(key: str, value: Any) -> Any:
    if _SECRET_NAME.search(key):
        return REDACTED
    return _redact(value) if isinstance(value, Mapping) else value
