"""Switch offloads off, so that what is on the wire is what a real wire would carry.

With them on, veth hands over packets without checksums and of up to 64 KiB.
Source: ethtool(8), include/uapi/linux/ethtool.h (Linux 6.12).
"""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct

from bridge.errors import TopologyError

_SIOCETHTOOL = 0x8946
_GET_SET = {
    "rx-checksumming": (0x14, 0x15),
    "tx-checksumming": (0x16, 0x17),
    "scatter-gather": (0x18, 0x19),
    "tcp-segmentation-offload": (0x1E, 0x1F),
    "generic-segmentation-offload": (0x23, 0x24),
    "generic-receive-offload": (0x2B, 0x2C),
}


def switch_off(interface: str) -> None:
    """Switch all offloads of ``interface`` off, in the calling thread's namespace.

    An offload the device does not know is off already. Raises TopologyError when one
    stays on.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        for set_command in (pair[1] for pair in _GET_SET.values()):
            _ethtool(control, interface, set_command, 0)
    left_on = [name for name, is_on in state(interface).items() if is_on]
    if left_on:
        raise TopologyError(f"{interface}: cannot switch off {', '.join(left_on)}")


def state(interface: str) -> dict[str, bool]:
    """Say for each offload, by its ethtool(8) name, whether it is on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        return {
            name: bool(_ethtool(control, interface, get_command, 0))
            for name, (get_command, _) in _GET_SET.items()
        }


def _ethtool(control: socket.socket, interface: str, command: int, value: int) -> int:
    """Issue one SIOCETHTOOL request on a struct ethtool_value, and return its data."""
    request = array.array("I", [command, value])
    ifreq = struct.pack("16sP16x", interface.encode(), request.buffer_info()[0])
    try:
        fcntl.ioctl(control.fileno(), _SIOCETHTOOL, ifreq)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return 0
        raise TopologyError(f"{interface}: ethtool request failed: {error.strerror}") from error
    return request[1]
