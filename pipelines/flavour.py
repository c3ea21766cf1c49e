"""The MLflow flavour of a version: `mlflow.pyfunc.load_model` works, and nothing is pickled.

The MLmodel names this module as its loader. The loaded object's `predict` gives the tensors
themselves as NumPy arrays by name, all of them or those asked for: what a user of MLflow needs in
order to fill a network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from metainit.errors import CheckpointError, suggestion

if TYPE_CHECKING:
    import numpy as np

    from metainit.card import Card
    from metainit.checkpoint import Checkpoint

CHECKPOINT, MLMODEL = "checkpoint.safetensors", "MLmodel"


def mlmodel(card: Card) -> str:
    """Return the text of a version's MLmodel file: JSON, which is YAML too, without clock time."""
    value = {
        "flavors": {"python_function": {"loader_module": "pipelines.flavour", "data": CHECKPOINT}},
        "metadata": {"metainit": {"name": card.name, "kind": card.kind, "digest": card.digest}},
    }
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


class LoadedInitialization:
    """What `mlflow.pyfunc.load_model` wraps: the tensors of a checkpoint, and its card.

    Example:
        >>> model = mlflow.pyfunc.load_model('models:/faces@champion')      # doctest: +SKIP
        >>> model.predict(None)['layers.0.weight'].shape                    # doctest: +SKIP
        (256, 2)
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Wrap a verified checkpoint."""
        self.checkpoint = checkpoint

    @property
    def card(self) -> Card:
        """The card of the checkpoint."""
        return self.checkpoint.card

    def predict(
        self, model_input: object = None, params: Mapping[str, Any] | None = None
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Return tensors by name: all for None or an empty input, else those that the input names.

        Raises:
            CheckpointError: the input names a tensor that the checkpoint does not hold.
        """
        tensors = self.checkpoint.tensors
        names = list(tensors) if model_input is None else _names(model_input)
        unknown = [name for name in names if name not in tensors]
        if unknown:
            raise CheckpointError(
                f"the checkpoint holds no tensor {unknown[0]!r}; {suggestion(unknown[0], tensors)}"
            )
        return {name: tensors[name].numpy() for name in names or tensors}


def _names(model_input: object) -> list[str]:
    """Read tensor names from a name, a list of them, or the first column of a table."""
    if isinstance(model_input, str):
        return [model_input]
    table = getattr(model_input, "to_numpy", None)
    values: Any = table().reshape(-1) if callable(table) else model_input
    return [str(value) for value in values] if isinstance(values, Iterable) else [str(values)]


def _load_pyfunc(path: str) -> LoadedInitialization:
    """Load and verify the checkpoint at `path`; MLflow calls this.

    Raises:
        CheckpointError: the file is damaged.
    """
    from metainit.checkpoint import load

    return LoadedInitialization(load(path))
