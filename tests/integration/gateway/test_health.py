"""Probes and metrics of a real gateway process."""

from tests.support.gateway_rig import Desk, Known, eventually


async def _ready(front: Desk) -> bool:
    return (await front.probe("/readyz"))[0] == 200


async def test_a_gateway_with_redis_is_alive_and_ready(front: Desk) -> None:
    """Even without kube-apiserver: beats need none."""
    await eventually(lambda: _ready(front), what="ready")

    assert (await front.probe("/healthz"))[0] == 200


async def test_metrics_tell_of_connections_frames_and_beats(front: Desk) -> None:
    """What a dashboard and an alert need."""
    known: Known = await front.known()
    beats = 'gpusession_gateway_heartbeats_total{result="ok"}'
    before = await front.metric(beats)
    async with front.socket(known) as line:
        await line.ask("beat")

        assert await front.metric("gpusession_gateway_connections") == 1
        assert await front.metric('gpusession_gateway_frames_total{type="beat"}') >= 1
        assert await front.metric(beats) == before + 1
    assert await front.metric("gpusession_gateway_connection_limit") == 20_000
    assert await front.metric("gpusession_gateway_flush_seconds_count") >= 1
