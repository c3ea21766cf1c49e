"""What an endpoint serves and by how many processes, as one value."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from serving.settings import EndpointSettings


class Arguments(BaseModel):
    """What is served and by how many processes.

    Example:
        >>> Arguments(registry='http://mlflow:5000', settings={'replicas': 2}).settings.replicas
        2
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    registry: str | None = Field(None, description="address of the registry; default: the configured one")
    cache: Path | None = Field(None, description="folder of verified copies; default: in METAINIT_HOME")
    poll: float = Field(2.0, gt=0, description="seconds between looks at the registry")
    predictors: int = Field(2, ge=1, description="processes that predict weights, at most")
    generators: int = Field(2, ge=1, description="processes that generate weights, at most")
    public: bool = Field(False, description="serve without keys, to everybody who reaches the address")
    settings: EndpointSettings = Field(
        EndpointSettings(), description="keys, limits, and how many replicas share the folder of copies"
    )
