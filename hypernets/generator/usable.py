"""Whether a generator can learn from members, and what it is told of them."""

from __future__ import annotations

import torch

from hypernets.generator.conditions import Conditions, conditions_of, described
from hypernets.generator.members import Members
from hypernets.generator.model import Generator
from metainit.errors import ConditionError, DataError, MismatchError

LEAST_MEMBERS = 16


def require_usable(generator: Generator, members: Members, held_out: Members) -> None:
    """Raise unless there are enough members, of this network, and all of them finite.

    Raises:
        DataError: there are too few, or one is not finite.
        MismatchError: they are of another network.
    """
    if len(members) < LEAST_MEMBERS:
        raise DataError(
            f"a generator needs at least {LEAST_MEMBERS} members, got {len(members)}: build a larger zoo"
        )
    for title, some in (("members", members), ("held-out fits", held_out)):
        if some.deltas.shape[-1] != generator.layout.size:
            raise MismatchError(
                f"the {title} have {some.deltas.shape[-1]} numbers each, the network "
                f"{generator.layout.size}: use a zoo of this network"
            )
        if bad := (~torch.isfinite(some.deltas).all(-1)).nonzero().flatten().tolist():
            raise DataError(
                f"{len(bad)} of the {title} are not finite, such as {some.ids[bad[0]]!r}: leave them out"
            )


def known_conditions(generator: Generator, members: Members) -> Conditions:
    """Return what the generator is told of members.

    Raises:
        ConditionError: they lack a kind.
    """
    config, known = generator.config.conditions, described(generator.config.conditions)
    has = {*members.conditions, *(["text"] if members.texts else [])}
    if missing := sorted(known.keys() - has):
        raise ConditionError(
            f"the members have no {' and no '.join(missing)}, which the generator is to be told: leave it "
            "out of generator.conditions"
        )
    return conditions_of(
        config,
        len(members),
        classes=members.conditions["class"] if "class" in known else None,
        texts=members.texts if "text" in known else (),
        observations=members.conditions["observation"] if "observation" in known else None,
    )
