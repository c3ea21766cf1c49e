"""What is still on its way to clients when a replica has sent its last byte: the kernel's and the proxy's."""

from __future__ import annotations

import time
from pathlib import Path

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
LOOK_SECONDS = 0.2
QUIET_LOOKS = 3
"""So many looks in a row find nothing before all counts as sent: between two chunks there is nothing, too."""


def unsent(port: int) -> int:
    """Return the bytes that wait in the sockets of a local port; 0 where the system does not tell.

    Example:
        >>> unsent(1)
        0
    """
    waiting = 0
    for table in TABLES:
        try:
            lines = table.read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, _, queues, *_ = line.split()
            if int(local.rpartition(":")[2], 16) == port:
                waiting += int(queues.partition(":")[0], 16)
    return waiting


def wait_until_sent(port: int, patience: float) -> bool:
    """Wait until the clients of a port have taken what waits for them; return whether they have in time.

    Args:
        port: of this machine.
        patience: seconds.
    """
    deadline, quiet = time.monotonic() + patience, 0
    while quiet < QUIET_LOOKS:
        if time.monotonic() > deadline:
            return False
        quiet = 0 if unsent(port) else quiet + 1
        time.sleep(LOOK_SECONDS)
    return True
