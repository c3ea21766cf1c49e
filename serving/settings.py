"""Settings of the endpoint: one frozen value, from a YAML file, the environment and options.

Later ones win: file, then ``METAINIT_SERVE_<NAME>``, then options. Values of the environment and of
``--set`` are YAML, so ``[https://lab.example]`` is a list and ``{read: 600/minute}`` a mapping.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from limits import RateLimitItem, parse
from pydantic import (
    AnyHttpUrl,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from metainit.errors import RecipeError, suggestion
from serving.scopes import Scope

PREFIX = "METAINIT_SERVE_"
MAX_FILE_BYTES = 1 << 20
OF_A_SERVICE = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)$")
"""Ends of what Kubernetes tells pods of a service: that of metainit-serve-svc begins like a setting."""
Network = IPv4Network | IPv6Network
Host = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])$", to_lower=True)]
Origin = Annotated[str, StringConstraints(pattern=r"^(\*|https?://[A-Za-z0-9.\-\[\]:]+)$")]


class EndpointSettings(BaseModel):
    """How the endpoint guards itself and what it tells of itself.

    Example:
        >>> EndpointSettings(rates={'read': '600/minute'}).rate('read')
        600 per 1 minute
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: Path | None = Field(None, description="file of API keys; without one everybody may do everything")
    open_metrics: bool = Field(False, description="show /metrics without a key")
    rates: Mapping[Scope, str] = Field(
        default_factory=dict, description="requests a time, by scope, of one key or address: 600/minute"
    )
    failures: str = Field("20/minute", description="wrong keys from one address; more are answered 429")
    body_bytes: int = Field(16 << 20, ge=0, description="largest body of a request")
    path_chars: int = Field(2048, ge=64, description="longest address, its query included")
    header_bytes: int = Field(12288, ge=512, description="largest headers of a request, together")
    in_flight: int = Field(1024, ge=1, description="requests under way in one replica; more are answered 503")
    queue: int = Field(32, ge=1, description="predictions under way; more are answered 429")
    start_seconds: float = Field(150.0, gt=0, description="time until an answer begins; then it is a 503")
    header_seconds: int = Field(10, ge=1, description="time for the headers of a request to arrive")
    idle_seconds: int = Field(60, ge=1, description="time that a connection may neither give nor take")
    drain_seconds: float = Field(30.0, ge=0, description="time for running requests when it is stopped")
    cors_origins: tuple[Origin, ...] = Field((), description="web pages of these origins may ask; * is all")
    hosts: tuple[Host, ...] = Field(
        (), description="names that requests may ask for (Host, without port); empty is any"
    )
    base_path: str = Field("", pattern=r"^(/[A-Za-z0-9._~-]+)*$", description="path of the proxy in front")
    trusted_proxies: tuple[Network, ...] = Field((), description="whose X-Forwarded-For and -Proto count")
    certificate: Path | None = Field(None, description="TLS certificate and its chain, PEM")
    certificate_key: Path | None = Field(None, description="private key of the certificate, PEM")
    hsts_seconds: int = Field(31_536_000, ge=0, description="Strict-Transport-Security under TLS; 0 is none")
    log_format: Literal["text", "json"] = Field("text", description="form of the log lines")
    log_file: Path | None = Field(None, description="file of the log; default: the replica's stderr")
    log_requests: bool = Field(False, description="a log line for each request")
    audit: Path | None = Field(None, description="file of JSON lines: who did what")
    traces: AnyHttpUrl | None = Field(None, description="OTLP/HTTP address that takes OpenTelemetry traces")
    traced_share: float = Field(1.0, ge=0, le=1, description="share of requests that are traced")
    replicas: int = Field(1, ge=1, le=1000, description="processes that answer")
    least_free_bytes: int = Field(
        256 << 20, ge=0, description="with less free disk, the store counts as full"
    )

    @field_validator("keys", "certificate", "certificate_key", "log_file", "audit")
    @classmethod
    def _paths_hold_everywhere(cls, value: Path | None) -> Path | None:
        """Return the path from the root: replicas have a working folder of their own."""
        return None if value is None else value.expanduser().absolute()

    @field_validator("rates")
    @classmethod
    def _rates_are_rates(cls, value: Mapping[Scope, str]) -> Mapping[Scope, str]:
        for text in value.values():
            _rate(text)
        return dict(value)

    @field_validator("failures")
    @classmethod
    def _failures_is_a_rate(cls, value: str) -> str:
        _rate(value)
        return value

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> EndpointSettings:
        if (self.certificate is None) != (self.certificate_key is None):
            raise ValueError("certificate and certificate_key belong together: give both, or neither")
        return self

    def rate(self, scope: Scope) -> RateLimitItem | None:
        """Return the share of a scope's rate that one replica grants, or None for no limit.

        Each replica counts by itself, and the proxy spreads requests evenly.
        """
        text = self.rates.get(scope)
        return _rate(text, self.replicas) if text is not None else None

    @property
    def failure_rate(self) -> RateLimitItem:
        """The share of the rate of wrong keys that one replica grants."""
        return _rate(self.failures, self.replicas)


def _rate(text: str, shares: int = 1) -> RateLimitItem:
    try:
        item = parse(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no rate; expected e.g. 600/minute, or 10/5 seconds") from error
    if item.amount < 1:
        raise ValueError(f"{text!r} lets nothing through; leave the rate out for no limit")
    return type(item)(-(-item.amount // shares), item.multiples)


def load_settings(
    file: Path | None = None,
    options: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> EndpointSettings:
    """Gather the settings from a file, the environment and options, of which later ones win.

    Args:
        file: YAML.
        options: by name; None counts as not given.
        environment: this process's where it is None.

    Raises:
        RecipeError: a name is unknown, a value is not valid, or the file cannot be read.

    Example:
        >>> load_settings(environment={'METAINIT_SERVE_REPLICAS': '2'}, options={'queue': 8}).replicas
        2
    """
    known = EndpointSettings.model_fields
    values = _from_file(file) if file is not None else {}
    for name, text in (os.environ if environment is None else environment).items():
        field = name.removeprefix(PREFIX).lower()
        if not name.startswith(PREFIX) or field in COMMAND_OPTIONS:
            continue
        if field in known or not OF_A_SERVICE.search(name):
            _require(field, known, name)
            values[field] = _yaml(text, name)
    given = {name: value for name, value in (options or {}).items() if value is not None}
    for name in given:
        _require(name, known, "an option")
    try:
        return EndpointSettings.model_validate({**values, **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        raise RecipeError(f"endpoint settings: {where}: {first['msg']}") from error


COMMAND_OPTIONS = ("host", "port", "registry", "cache", "poll", "predictors", "generators", "config")
"""What the command reads from the environment by itself, since it is no setting of the app."""


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """Read options of the form ``name=value``.

    Raises:
        RecipeError: one has another form.

    Example:
        >>> assignments(['queue=8', 'rates={read: 600/minute}'])
        {'queue': 8, 'rates': {'read': '600/minute'}}
    """
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(f"{text!r} sets nothing; expected name=value, e.g. body_bytes=1000000")
        values[name.strip()] = _yaml(value, name)
    return values


def _from_file(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"cannot read the settings {file}: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise RecipeError(f"{file} has more than {MAX_FILE_BYTES} bytes, which are no settings")
    values = _yaml(content.decode("utf-8", "replace"), str(file)) or {}
    if not isinstance(values, dict):
        raise RecipeError(f"{file} holds a {type(values).__name__}, expected settings by name")
    for name in values:
        _require(str(name), EndpointSettings.model_fields, str(file))
    return values


def _require(name: str, known: Iterable[str], origin: str) -> None:
    known = list(known)
    if name not in known:
        raise RecipeError(f"{origin} sets {name!r}, which is no setting; {suggestion(name, known)}")


def _yaml(text: str, origin: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{origin} is no YAML: {error}") from error
