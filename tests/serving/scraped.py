"""Values of metrics as Prometheus reads them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def scraped(text: str, name: str, /, **labels: str) -> float:
    """Return the sum of the samples of this name that have these labels among theirs.

    Raises:
        LookupError: there are none.
    """
    values = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    if not values:
        raise LookupError(f"no sample is called {name} with {labels}")
    return sum(values)
