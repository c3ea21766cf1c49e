"""What waits for slow clients is seen, and waited for."""

from __future__ import annotations

import socket
import sys
import threading
import time

import pytest

from serving.draining import unsent, wait_until_sent

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")


def test_what_a_client_has_not_taken_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            server, _ = listener.accept()
            assert unsent(port) == 0 and wait_until_sent(port, 5)
            server.setblocking(False)
            sent = 0
            while True:  # until client and kernel are full
                try:
                    sent += server.send(b"x" * 65536)
                except BlockingIOError:
                    break
            assert unsent(port) > 0
            assert not wait_until_sent(port, 0.5)

            def take() -> None:
                time.sleep(0.3)
                left = sent
                while left:
                    left -= len(client.recv(1 << 20))

            taker = threading.Thread(target=take)
            taker.start()
            assert wait_until_sent(port, 30) and unsent(port) == 0
            taker.join()
            server.close()
