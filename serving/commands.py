"""The subcommand that runs the endpoint."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from metainit.errors import MetainitError

PublicHost = (
    "{host} can be reached from other machines, and this endpoint has no keys: everybody there "
    "could read what it serves. Use --host 127.0.0.1, or pass --public if that is what you want"
)


def serve(
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to listen on", min=1, max=65535)] = 8000,
    registry: Annotated[
        str | None, typer.Option(help="address of the registry; default: the configured one")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="folder of verified copies; default: in METAINIT_HOME")
    ] = None,
    poll: Annotated[float, typer.Option(help="seconds between looks at the registry")] = 2.0,
    predictors: Annotated[int, typer.Option(help="processes that predict weights, at most", min=1)] = 2,
    generators: Annotated[int, typer.Option(help="processes that generate weights, at most", min=1)] = 2,
    public: Annotated[bool, typer.Option("--public", help="allow other machines in")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="answer in JSON")] = False,
) -> None:
    """Serve the registry over HTTP until Ctrl-C."""
    from serving.deployments import start
    from serving.startup import is_loopback

    if not public and not is_loopback(host):
        raise typer.BadParameter(PublicHost.format(host=host), param_hint="--host")
    try:
        workers = {"predictors": predictors, "generators": generators}
        with start(host, port, registry, cache=cache, poll=poll, **workers) as endpoint:
            if as_json:
                typer.echo(json.dumps({"url": endpoint.url, "seconds": endpoint.seconds}))
            else:
                typer.echo(f"metainit serves at {endpoint.url} (API: {endpoint.url}/docs)")
                typer.echo("Ctrl-C stops it")
            _wait_for_the_end()
    except MetainitError as error:
        typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from error


def _wait_for_the_end() -> None:
    """Return at Ctrl-C or a polite request to end."""
    end = threading.Event()
    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    for kind in before:
        signal.signal(kind, lambda *_: end.set())
    try:
        while not end.wait(1.0):
            pass
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
