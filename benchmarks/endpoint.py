"""Load, faults and fuzz of the HTTP endpoint.

python -m benchmarks.endpoint weights --rounds 7         (some 4 minutes on a quiet machine; needs nginx)
python -m benchmarks.endpoint lookups --rounds 7         (some 2 minutes; needs wrk)
python -m benchmarks.endpoint faults --seconds 60        (some 12 minutes)
python -m benchmarks.endpoint fuzz                       (some 15 CPU minutes)
python -m benchmarks.endpoint table
"""

from __future__ import annotations

import typer

from benchmarks import endpoint_faults, endpoint_fuzz, endpoint_lookups, endpoint_tables, endpoint_weights
from benchmarks.cells import Cells

app = typer.Typer(help="Load, faults and fuzz of the HTTP endpoint.", pretty_exceptions_enable=False)
RESULTS = "endpoint"


@app.callback()
def main() -> None:
    """Load, faults and fuzz of the HTTP endpoint."""


@app.command()
def weights(rounds: int = 7, tiny: bool = False, into: str = RESULTS) -> None:
    """Throughput of three sizes, memory of the replica, and latency under a crowd, beside the peers."""
    sizes = endpoint_weights.TINY if tiny else endpoint_weights.SIZES
    endpoint_weights.run(Cells(into), rounds, sizes, 64 if tiny else endpoint_weights.CROWD_FETCHES)


@app.command()
def lookups(rounds: int = 7, seconds: float = 3.0, into: str = RESULTS) -> None:
    """Rates of look-ups and 304s beside an empty route on the same Serve."""
    endpoint_lookups.run(Cells(into), rounds, seconds)


@app.command()
def faults(seconds: float = 60.0, only: list[str] | None = None, into: str = RESULTS) -> None:
    """What clients notice of each fault under load."""
    endpoint_faults.run(Cells(into), seconds, only or list(endpoint_faults.FAULTS))


@app.command()
def fuzz(inputs: int = 100_000, requests: int = 10_000, seed: int = 0, into: str = RESULTS) -> None:
    """Mutated graphs, headers and checkpoints, and requests that the OpenAPI leads to."""
    endpoint_fuzz.run(Cells(into), inputs, requests, seed)


@app.command()
def table(into: str = RESULTS) -> None:
    """Print the results in Markdown."""
    print(endpoint_tables.table(Cells(into).values))


if __name__ == "__main__":
    app()
