"""The head of a network: its last layer, which is all that some rules adapt."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from metainit.errors import RecipeError


@runtime_checkable
class HasHead(Protocol):
    """A network that says which of its modules is its head."""

    @property
    def head(self) -> nn.Module:
        """The module that turns features into the output."""
        ...


def head_names(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters in a network's head.

    Raises:
        RecipeError: the network has none.

    Example:
        >>> from metainit.networks import Siren
        >>> head_names(Siren(width=4, depth=3))
        ('layers.2.weight', 'layers.2.bias')
    """
    if not isinstance(network, HasHead):
        raise RecipeError(
            f"{type(network).__name__} does not say which of its modules is its head, which is all that is "
            "to be adapted: give it an attribute `head`, or set algorithm.adapts to all"
        )
    inside = {id(parameter) for parameter in network.head.parameters()}
    return tuple(name for name, value in network.named_parameters() if id(value) in inside)
