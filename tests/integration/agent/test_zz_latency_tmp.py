import asyncio, statistics, time, pytest
from datetime import timedelta
from tests.support.agent_rig import AgentRig
from tests.integration.agent.conftest import *
@pytest.mark.timeout(300)
async def test_latency(rig):
    took=[]; st={}
    for n in range(100):
        pod = await rig.start_pod(f"p{n}")
        await rig.binder.bind(rig.bind_request(pod, f"s{n}"))
        t=time.monotonic()
        r = await rig.releaser.release(rig.order(pod, f"s{n}"))
        took.append(time.monotonic()-t)
        assert r.verdict=="Freed", r
        for s in r.stages: st.setdefault(s.name,[]).append(s.milliseconds)
    took.sort()
    print("\nsingle p50 %.1f p99 %.1f max %.1f ms"%(took[49]*1e3,took[98]*1e3,took[-1]*1e3))
    for k,v in st.items(): v.sort(); print(k,"p50 %.1f p99 %.1f"%(v[len(v)//2],v[int(len(v)*.99)-1]))
@pytest.mark.timeout(300)
async def test_batch(rig):
    pods=[]
    for n in range(32):
        pod = await rig.start_pod(f"p{n}"); pods.append(pod)
        await rig.binder.bind(rig.bind_request(pod, f"s{n}"))
    t=time.monotonic()
    rs=await asyncio.gather(*(rig.releaser.release(rig.order(p,f"s{n}")) for n,p in enumerate(pods)))
    print("\nbatch 32: %.0f ms"%((time.monotonic()-t)*1e3), {r.verdict for r in rs}, max(sum(s.milliseconds for s in r.stages) for r in rs))
