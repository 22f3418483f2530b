"""Kopf's part: one handler that takes in an event, puts its key into the queue, returns.

Kopf watches, lists again and logs in; it writes nothing here (project notes on Kopf: no
state handlers, so no annotations, no finalizer of its own, no retries in annotations).
"""

from collections.abc import Awaitable, Callable
from typing import Any

import kopf
import msgspec
import structlog

from gpusession.api.session import GROUP, PLURAL, VERSION, Session
from gpusession.controller.intake import Intake
from gpusession.controller.storage import NoDiffBase, NoProgress

log = structlog.get_logger()


def build_registry(
    intake: Intake, login: Callable[[], Awaitable[kopf.AiohttpSession]]
) -> kopf.OperatorRegistry:
    """Register all handlers of this operator; there are no others."""
    registry = kopf.OperatorRegistry()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry, id="session")
    async def session_event(event: Any, **_: Any) -> None:
        try:
            session = msgspec.convert(event["object"], Session)
        except msgspec.ValidationError as error:
            log.error("a Session cannot be read; is the CRD of another version?", error=str(error))
            return
        if event["type"] == "DELETED":
            intake.gone(session.metadata.uid)
        else:
            intake.watched(session)

    @kopf.on.login(registry=registry)
    async def log_in(**_: Any) -> kopf.AiohttpSession:
        return await login()

    return registry


def build_settings() -> kopf.OperatorSettings:
    """Set Kopf up to watch and do nothing else."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # one known resource; spares CRD and Namespace watches
    settings.posting.enabled = False  # our one Event per end is written by the worker
    settings.watching.chunk_size = 500
    settings.queueing.idle_timeout = 0.5  # a worker task per object lives on this long
    settings.queueing.exit_timeout = 1.0
    settings.persistence.consistency_timeout = 0  # we have no state handlers to protect
    settings.persistence.progress_storage = NoProgress()
    settings.persistence.diffbase_storage = NoDiffBase()
    return settings
