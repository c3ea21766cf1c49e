"""The subcommand that runs the endpoint."""

from __future__ import annotations

import json
import signal
import sys
import threading
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from metainit.errors import MetainitError

PublicHost = (
    "{host} can be reached from other machines, and this endpoint has no keys: everybody there "
    "could read what it serves. Use --host 127.0.0.1, or make a key (metainit keys make) and pass "
    "--keys {keys}, or pass --public if open to all is what you want"
)
ENV = "METAINIT_SERVE_{}"


def serve(
    host: Annotated[str, typer.Option(help="address to listen on", envvar=ENV.format("HOST"))] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="port to listen on", min=1, max=65535, envvar=ENV.format("PORT"))
    ] = 8000,
    registry: Annotated[
        str | None,
        typer.Option(
            help="address of the registry; default: the configured one", envvar=ENV.format("REGISTRY")
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="folder of verified copies; default: in METAINIT_HOME", envvar=ENV.format("CACHE")),
    ] = None,
    poll: Annotated[
        float, typer.Option(help="seconds between looks at the registry", envvar=ENV.format("POLL"))
    ] = 2.0,
    predictors: Annotated[
        int,
        typer.Option(help="processes that predict weights, at most", min=1, envvar=ENV.format("PREDICTORS")),
    ] = 2,
    generators: Annotated[
        int,
        typer.Option(help="processes that generate weights, at most", min=1, envvar=ENV.format("GENERATORS")),
    ] = 2,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings: see docs/operating.md", envvar=ENV.format("CONFIG")),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="file of keys (metainit keys make); without one no key is asked for")
    ] = None,
    replicas: Annotated[int | None, typer.Option(help="processes that answer; default: 1", min=1)] = None,
    set_: Annotated[
        list[str], typer.Option("--set", metavar="NAME=VALUE", help="any other setting, may be repeated")
    ] = [],  # noqa: B006  # typer copies it
    public: Annotated[bool, typer.Option("--public", help="allow other machines in without keys")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="answer in JSON")] = False,
) -> None:
    """Serve the registry over HTTP until Ctrl-C."""
    from serving.deployments import start
    from serving.key_file import default_path
    from serving.settings import assignments, load_settings
    from serving.startup import is_loopback

    try:
        options = {**assignments(set_), "keys": keys, "replicas": replicas}
        settings = load_settings(config, options)
        if settings.keys is None and not public and not is_loopback(host):
            text = PublicHost.format(host=host, keys=default_path())
            raise typer.BadParameter(text, param_hint="--host")
        if not as_json:
            typer.echo("starting Ray and the endpoint, which takes half a minute", err=True)
        answers = sys.stdout  # what Ray's threads print meanwhile is no answer
        with (
            redirect_stdout(sys.stderr),
            start(
                host,
                port,
                registry,
                cache=cache,
                poll=poll,
                predictors=predictors,
                generators=generators,
                settings=settings,
            ) as endpoint,
        ):
            if as_json:
                typer.echo(json.dumps({"url": endpoint.url, "seconds": endpoint.seconds}), answers)
            else:
                typer.echo(f"metainit serves at {endpoint.url} (API: {endpoint.url}/docs)", answers)
                typer.echo("Ctrl-C stops it", answers)
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
