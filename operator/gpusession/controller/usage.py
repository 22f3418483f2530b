"""Asks each node's agent once a minute whose GPU works, and notes it in the records.

An agent that does not answer leaves a gap, and a gap is no idleness.
"""

import asyncio
from collections import defaultdict
from datetime import timedelta

import structlog

from gpusession.agent_client import AgentClient
from gpusession.api.session import Phase
from gpusession.api.usage import Busy, UsageReport
from gpusession.controller.sessions import SessionCache
from gpusession.errors import AgentUnavailable, StoreUnavailable
from gpusession.store.sessions import SessionStore

AT_ONCE = 16
"""Agents asked at the same time; with 5,000 nodes a round takes seconds, not the minute."""

ANSWERED_FOR, SILENT_FOR = 2.0, 10.0
"""Seconds for which it is believed that an agent answers, and that it does not: the former lets
somebody end."""

ANSWER_PATIENCE = 1.0
"""Seconds that a worker waits for an agent; the question itself goes on, for the next one."""

BREATH_SECONDS = 1.0
"""Between two rounds that take longer than the period, where many agents do not answer."""

log = structlog.get_logger()


class UsageKeeper:
    """Polls, and remembers the latest answers."""

    def __init__(
        self,
        *,
        agents: AgentClient,
        store: SessionStore,
        sessions: SessionCache,
        period: timedelta,
    ) -> None:
        self._agents = agents
        self._store = store
        self._sessions = sessions
        self._period = period
        self._works: dict[str, tuple[bool, float]] = {}
        self._permits = asyncio.Semaphore(AT_ONCE)
        self._questions: dict[str, asyncio.Task[UsageReport | None]] = {}
        self._answers: dict[str, tuple[bool, float]] = {}

    async def run(self) -> None:
        """Poll until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await self.poll()
            took = loop.time() - began
            await asyncio.sleep(max(self._period.total_seconds() - took, BREATH_SECONDS))

    async def poll(self) -> None:
        """Ask every node with an Active Session once."""
        nodes: defaultdict[str, set[str]] = defaultdict(set)
        for session in self._sessions:
            if session.status.phase is Phase.ACTIVE and session.status.node_name:
                nodes[session.status.node_name].add(session.metadata.uid)
        self._works = {u: seen for u, seen in self._works.items() if u in self._sessions}
        await asyncio.gather(*(self._ask(node, uids) for node, uids in nodes.items()))

    def works(self, uid: str) -> bool | None:
        """Say whether a Session's GPU works; None where nobody knows by now."""
        works, at = self._works.get(uid, (None, 0.0))
        age = asyncio.get_running_loop().time() - at
        return works if age <= 3 * self._period.total_seconds() else None

    async def answers(self, node: str) -> bool:
        """Tell whether a node's agent answers; False also where it takes its time.

        One question at a time to each node, however many ask, and none waits for longer than
        `ANSWER_PATIENCE`: dark nodes must not keep all workers busy.
        """
        loop = asyncio.get_running_loop()
        answers, until = self._answers.get(node, (False, 0.0))
        if loop.time() < until:
            return answers
        question = self._questions.get(node)
        if question is None:
            question = loop.create_task(self._report(node), name=f"question {node}")
            self._questions[node] = question
            question.add_done_callback(lambda asked: self._note_answer(node, asked))
        done, _ = await asyncio.wait({question}, timeout=ANSWER_PATIENCE)
        return bool(done) and question.result() is not None

    def _note_answer(self, node: str, asked: asyncio.Task[UsageReport | None]) -> None:
        del self._questions[node]
        if not asked.cancelled() and asked.exception() is None:
            answers, now = asked.result() is not None, asyncio.get_running_loop().time()
            self._answers = {n: known for n, known in self._answers.items() if now < known[1]}
            self._answers[node] = (answers, now + (ANSWERED_FOR if answers else SILENT_FOR))

    async def _ask(self, node: str, uids: set[str]) -> None:
        async with self._permits:
            report = await self._report(node)
            if report is None:
                return
            seen = {
                one.session_uid: one.busy is Busy.BUSY
                for one in report.sessions
                if one.session_uid in uids and one.busy is not Busy.UNKNOWN
            }
            now = asyncio.get_running_loop().time()
            self._works |= {uid: (works, now) for uid, works in seen.items()}
            try:
                await self._store.note_usage(list(seen.items()))
            except StoreUnavailable as error:
                log.warning("usage not noted", node=node, error=str(error))

    async def _report(self, node: str) -> UsageReport | None:
        try:
            return await self._agents.usage(node)
        except AgentUnavailable as error:
            log.warning("no usage from the agent", node=node, error=str(error))
            return None
