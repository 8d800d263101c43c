"""The asyncio face of QoS2: Handle and Flow as in qos2, with `await`.

    async with qos2.aio.Handle() as qos:
        flow = await qos.add_socket(sock, qos2.TrafficType.VOICE)

Same names, arguments, results and errors. A task that is cancelled in a call leaves nothing behind: what waits
at the daemon is cancelled there, and a flow that nobody will know of is ended.
"""

from qos2.aio.session import Flow as Flow
from qos2.aio.session import Handle as Handle
