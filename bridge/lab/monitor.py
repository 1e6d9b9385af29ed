"""What is asked of QEMU's monitor: to save a machine.

Imported only when a machine is saved, because asyncio is dear to import for each
command.
"""

from __future__ import annotations

import asyncio
import socket

from qemu.qmp import QMPClient, QMPError

from bridge.errors import LabError

_SAVE_S = 30.0


def save_machine(monitor: socket.socket, fd: int) -> None:
    """Have QEMU write the machine to ``fd``, and let it go on; raises LabError."""
    try:
        asyncio.run(_migrate(monitor, fd))
    except (QMPError, EOFError, TimeoutError) as error:
        raise LabError(f"QEMU could not save the machine: {error or 'no answer'}") from error


async def _migrate(monitor: socket.socket, fd: int) -> None:
    qmp = QMPClient()
    async with asyncio.timeout(_SAVE_S):
        await qmp.connect(monitor)
        # The default is made for networks.
        await qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})
        qmp.send_fd_scm(fd)
        await qmp.execute("getfd", {"fdname": "save"})
        await qmp.execute("migrate", {"uri": "fd:save"})
        while (await qmp.execute("query-status"))["status"] != "postmigrate":
            if (await qmp.execute("query-migrate"))["status"] == "failed":
                raise LabError("QEMU could not save the machine")
            await asyncio.sleep(0.01)
        await qmp.execute("cont")
        await qmp.disconnect()
