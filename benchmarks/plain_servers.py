"""The servers that the endpoint is measured beside: plain uvicorn, and bare `sendfile` as the limit.

python -m benchmarks.plain_servers uvicorn|sendfile PORT FILE...
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path


def uvicorn_file_response(port: int, files: list[Path]) -> None:
    """Serve files with FastAPI's FileResponse under uvicorn, as its documentation shows."""
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import FileResponse

    app = FastAPI()

    @app.get("/{number}")
    def file(number: int) -> FileResponse:
        return FileResponse(files[number])

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def sendfile(port: int, files: list[Path]) -> None:
    """Answer every request with the file of its path, by `sendfile` from a thread a connection."""
    with socket.create_server(("127.0.0.1", port)) as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=_answer, args=(connection, files), daemon=True).start()


def _answer(connection: socket.socket, files: list[Path]) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, connection.makefile("rb") as requests:
        while line := requests.readline():
            while requests.readline() not in (b"\r\n", b""):
                pass
            with open(files[int(line.split()[1][1:])], "rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
                connection.sendfile(stream)


if __name__ == "__main__":
    kind, number, *names = sys.argv[1:]
    serve = {"uvicorn": uvicorn_file_response, "sendfile": sendfile}[kind]
    serve(int(number), [Path(name) for name in names])
