"""What NVML says about the GPUs of this node; the only importer of pynvml.

Every answer has three values: somebody holds memory, nobody does, or Blind, which says why
nobody could look. "Could not look" never comes out as an empty list.

One lie of the driver cannot be seen from here: to a process outside the host's pid
namespace it leaves pids out and reports success. The agent must prove its namespace before
it believes a Snapshot.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import pynvml

from gpusession.agent.nvml_answers import Blind as Blind
from gpusession.agent.nvml_answers import BlindReason as BlindReason
from gpusession.agent.nvml_answers import Device as Device
from gpusession.agent.nvml_answers import GpuActivity as GpuActivity
from gpusession.agent.nvml_answers import GpuUse as GpuUse
from gpusession.agent.nvml_answers import Holder as Holder
from gpusession.agent.nvml_answers import Snapshot as Snapshot
from gpusession.agent.nvml_answers import Use as Use

T = TypeVar("T")

_LIST_ATTEMPTS = 3
"""pynvml asks with room for twice the processes and five more: thrice too many is no race."""

_NO_SUCH_LIST = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})

_NO_SUCH_FIGURE = _NO_SUCH_LIST | {pynvml.NVML_ERROR_INVALID_ARGUMENT}
"""How a GPU, a MIG device or a driver says that it cannot tell its utilisation."""

_WHOLE_PERCENT = 100


class Nvml:
    """Asks NVML from one thread of its own, and says Blind rather than wait for ever.

    call_timeout bounds one answer, however many NVML calls it takes. A call that hangs (a sick
    GPU does that) keeps the thread; until it returns every answer is Blind at once.
    """

    def __init__(self, *, call_timeout: timedelta) -> None:
        self._timeout = call_timeout
        self._thread: _NvmlThread | None = None
        self._overdue: Future[Any] | None = None

    async def start(self) -> Blind | None:
        """Start the thread and initialise NVML; after a Blind, each question tries again."""
        if self._thread is None:
            self._thread = _NvmlThread()
        answer = await self._ask(_nothing)
        return answer if isinstance(answer, Blind) else None

    async def close(self) -> None:
        """Let NVML go, without waiting for a call that hangs."""
        await self._ask(pynvml.nvmlShutdown)
        if self._thread is not None:
            self._thread.stop()
        self._thread = None

    async def devices(self) -> tuple[Device, ...] | Blind:
        """Tell which GPUs this node has; one that cannot be read blinds the whole answer."""
        return await self._ask(_read_devices)

    async def snapshot(self, uuids: Collection[str] | None) -> Snapshot | Blind:
        """Tell what is held on the named GPUs or MIG devices; None means every GPU.

        No names at all are Blind: a caller that knows no GPU has looked at none.
        """
        if uuids is None:
            return await self._ask(_read_every_gpu)
        if not uuids:
            return Blind(BlindReason.GPU_NOT_FOUND, "no GPU was named")
        return await self._ask(partial(_read_gpus, tuple(uuids)))

    async def activity(self, since: datetime) -> tuple[GpuActivity, ...] | Blind:
        """Tell how every GPU and each process on it worked after `since`."""
        return await self._ask(partial(_read_every_activity, int(since.timestamp() * 1e6)))

    async def _ask(self, read: Callable[[], T]) -> T | Blind:
        thread = self._thread
        if thread is None:
            return Blind(BlindReason.NOT_STARTED, "NVML is not started")
        if self._overdue is not None and self._overdue is thread.current:
            return Blind(BlindReason.NVML_TIMEOUT, "an earlier call has not returned")
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                return await asyncio.wrap_future(thread.submit(read))
        except TimeoutError:
            self._overdue = thread.current
            return Blind(BlindReason.NVML_TIMEOUT, f"no answer within {self._timeout}")


class _NvmlThread:
    """Runs NVML reads one by one, initialising NVML first where that is still to do.

    A ThreadPoolExecutor joins its threads when the interpreter exits, and one that hangs in the
    driver would keep the agent from restarting: this thread is a daemon instead.
    """

    def __init__(self) -> None:
        self.current: Future[Any] | None = None
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._work = queue.SimpleQueue()
        self._initialised = False
        threading.Thread(target=self._run, name="nvml", daemon=True).start()

    def submit(self, read: Callable[[], T]) -> Future[T | Blind]:
        """Queue a read; a future cancelled before its turn is never run."""
        future: Future[T | Blind] = Future()
        self._work.put((future, read))
        return future

    def stop(self) -> None:
        """End the thread after what is queued."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            future, read = work
            if not future.set_running_or_notify_cancel():
                continue
            self.current = future
            try:
                answer = self._look(read)
            except BaseException as error:  # noqa: BLE001 - the one who asked must see it
                self.current = None
                future.set_exception(error)
            else:
                self.current = None
                future.set_result(answer)

    def _look(self, read: Callable[[], T]) -> T | Blind:
        try:
            with _naming("NVML"):
                if not self._initialised:
                    pynvml.nvmlInit()
                    self._initialised = True
                return read()
        except _CannotLookError as error:
            return error.blind


class _CannotLookError(Exception):
    """Carries a Blind out of a read; never leaves this module."""

    def __init__(self, reason: BlindReason, detail: str) -> None:
        super().__init__(detail)
        self.blind = Blind(reason, detail)


@contextmanager
def _naming(subject: str) -> Iterator[None]:
    """Turn errors of pynvml into Blind, with the GPU or step that failed in the detail.

    No pynvml error passes this line: NVMLError compares by `other.value`, so it cannot meet
    another kind of exception, and NVMLLibraryMismatchError is no NVMLError at all.
    """
    try:
        yield
    except pynvml.NVMLError as error:
        raise _CannotLookError(_reason(error.value), f"{subject}: {error}") from error
    except pynvml.NVMLLibraryMismatchError as error:
        raise _CannotLookError(BlindReason.NOT_SUPPORTED, f"{subject}: {error}") from error


def _reason(code: int) -> BlindReason:
    return {
        pynvml.NVML_ERROR_UNINITIALIZED: BlindReason.UNINITIALIZED,
        pynvml.NVML_ERROR_NOT_SUPPORTED: BlindReason.NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION: BlindReason.NO_PERMISSION,
        pynvml.NVML_ERROR_NOT_FOUND: BlindReason.GPU_NOT_FOUND,
        pynvml.NVML_ERROR_INSUFFICIENT_SIZE: BlindReason.LISTS_UNSTABLE,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: BlindReason.DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_TIMEOUT: BlindReason.NVML_TIMEOUT,
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: BlindReason.LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: BlindReason.NOT_SUPPORTED,
        pynvml.NVML_ERROR_GPU_IS_LOST: BlindReason.GPU_IS_LOST,
        pynvml.NVML_ERROR_RESET_REQUIRED: BlindReason.RESET_REQUIRED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: BlindReason.DRIVER_MISMATCH,
    }.get(code, BlindReason.NVML_ERROR)


def _nothing() -> None:
    """Read nothing: the thread has initialised NVML by then."""


def _read_devices() -> tuple[Device, ...]:
    return tuple(_read_device(index) for index in range(pynvml.nvmlDeviceGetCount()))


def _read_device(index: int) -> Device:
    with _naming(f"GPU {index}"):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return Device(
            uuid=pynvml.nvmlDeviceGetUUID(handle),
            index=index,
            name=pynvml.nvmlDeviceGetName(handle),
            memory_total_bytes=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
        )


def _read_every_gpu() -> Snapshot:
    return _read_gpus(tuple(device.uuid for device in _read_devices()))


def _read_gpus(uuids: tuple[str, ...]) -> Snapshot:
    return Snapshot(tuple(_read_gpu(uuid) for uuid in uuids))


def _read_gpu(uuid: str) -> GpuUse:
    with _naming(uuid):
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        holders: list[Holder] = []
        skipped: set[Use] = set()
        for part, part_uuid in _parts(handle, uuid):
            holders += _read_holders(part, part_uuid, skipped)
        used_bytes = pynvml.nvmlDeviceGetMemoryInfo(handle).used
    return GpuUse(uuid, used_bytes, tuple(holders), frozenset(skipped))


def _parts(handle: Any, uuid: str) -> list[tuple[Any, str]]:
    """Give the handles whose lists tell all: a GPU cut by MIG tells only a part of it itself."""
    if not _is_cut_by_mig(handle):
        return [(handle, uuid)]
    parts = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_NOT_FOUND:  # a slot without a MIG device
                raise
        else:
            parts.append((part, pynvml.nvmlDeviceGetUUID(part)))
    return parts


def _is_cut_by_mig(handle: Any) -> bool:
    """Tell whether MIG is on; a GPU that cannot do MIG, or is a MIG device itself, is whole."""
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError as error:
        if error.value in _NO_SUCH_LIST | {pynvml.NVML_ERROR_INVALID_ARGUMENT}:
            return False
        raise
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _read_holders(handle: Any, uuid: str, skipped: set[Use]) -> list[Holder]:
    """Merge the lists of one handle by pid, and note in skipped those that it does not keep."""
    holders: dict[int, Holder] = {}
    for use in Use:
        processes = _read_list(handle, use)
        if processes is None:
            skipped.add(use)
            continue
        for process in processes:
            found = Holder(process.pid, process.usedGpuMemory, uuid, frozenset({use}))
            known = holders.get(found.pid)
            holders[found.pid] = found if known is None else _merged(known, found)
    return list(holders.values())


def _merged(one: Holder, other: Holder) -> Holder:
    """Join two entries of a process: each list gives all that it holds, so the larger counts."""
    sizes = (one.memory_bytes, other.memory_bytes)
    largest = max((size for size in sizes if size is not None), default=None)
    return Holder(
        pid=one.pid,
        memory_bytes=None if None in sizes else largest,
        gpu_uuid=one.gpu_uuid,
        kinds=one.kinds | other.kinds,
    )


def _read_list(handle: Any, use: Use) -> list[Any] | None:
    """Read one process list; None where this GPU or driver does not keep it.

    Only the list of compute processes must be there: without it nothing is proven. The names
    with a version are called, as the plain ones hide a missing function (see _naming).
    """
    read = {
        Use.COMPUTE: pynvml.nvmlDeviceGetComputeRunningProcesses_v3,
        Use.GRAPHICS: pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3,
        Use.MPS: pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3,
    }[use]
    for attempt in range(1, _LIST_ATTEMPTS + 1):
        try:
            return list(read(handle))
        except pynvml.NVMLError as error:
            if error.value in _NO_SUCH_LIST and use is not Use.COMPUTE:
                return None
            if error.value != pynvml.NVML_ERROR_INSUFFICIENT_SIZE or attempt == _LIST_ATTEMPTS:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _read_every_activity(since_us: int) -> tuple[GpuActivity, ...]:
    found: list[GpuActivity] = []
    for device in _read_devices():
        with _naming(device.uuid):
            handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
            for part, uuid in _parts(handle, device.uuid):
                # The driver keeps no samples of processes while a GPU is cut by MIG.
                processes = _read_samples(part, since_us) if uuid == device.uuid else None
                found.append(GpuActivity(uuid, _read_rate(part), processes))
    return tuple(found)


def _read_rate(handle: Any) -> int | None:
    try:
        rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    except pynvml.NVMLError as error:
        if error.value in _NO_SUCH_FIGURE:
            return None
        raise
    return max(int(rates.gpu), int(rates.memory))


def _read_samples(handle: Any, since_us: int) -> dict[int, int] | None:
    """Read what the driver sampled of processes; "not found" is its word for idle."""
    for attempt in range(1, _LIST_ATTEMPTS + 1):
        try:
            return _believed(pynvml.nvmlDeviceGetProcessUtilization(handle, since_us), since_us)
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_NOT_FOUND:
                return {}
            if error.value in _NO_SUCH_FIGURE:
                return None
            if error.value != pynvml.NVML_ERROR_INSUFFICIENT_SIZE or attempt == _LIST_ATTEMPTS:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _believed(samples: list[Any], since_us: int) -> dict[int, int] | None:
    """Give the most work by pid.

    Drivers are known to give entries older than asked for, which count for nothing, and ones
    beyond 100 %, after which the others are not believed either.
    """
    found: dict[int, int] = {}
    for sample in samples:
        if sample.timeStamp <= since_us:
            continue
        most = max(sample.smUtil, sample.memUtil, sample.encUtil, sample.decUtil)
        if most > _WHOLE_PERCENT:
            return None
        found[sample.pid] = max(most, found.get(sample.pid, 0))
    return found
