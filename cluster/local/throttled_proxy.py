"""TCP proxy with a limited bandwidth, to measure and test slow connections."""

import socket
import threading
import time
from contextlib import suppress


class ThrottledProxy:
    """TCP proxy that limits and counts the bytes that a server sends.

    Args:
        endpoint: URL of the server.
        bytes_per_second: bandwidth.
        shared: whether all connections share the bandwidth; otherwise each connection has it.
    """

    def __init__(self, endpoint: str, bytes_per_second: float, *, shared: bool = True) -> None:
        self.shared = shared
        host, port = endpoint.removeprefix("http://").split(":")
        self.server = (host, int(port))
        self.bytes_per_second = bytes_per_second
        self.received = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        """URL of the proxy."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """Accept no further connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(self.server) as server:
            upward = threading.Thread(target=self._copy, args=(client, server), daemon=True)
            upward.start()
            self._copy(server, client, counted=True)

    def _copy(self, source: socket.socket, target: socket.socket, counted: bool = False) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if counted:
                    seconds = len(data) / self.bytes_per_second
                    with self._lock:
                        self.received += len(data)
                        time.sleep(seconds * self.shared)
                    time.sleep(seconds * (not self.shared))
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
