"""Controls that are analytic starts: training from scratch."""

from __future__ import annotations

import copy

from metainit.evidence.controls.base import Control, Setting
from metainit.evidence.curves import Start, weights_of
from metainit.initialization import Analytic


def analytic(name: str) -> Control:
    """Return the control that fills the network with an analytic start, drawn from the setting's seed.

    Raises:
        MismatchError: (the control) the rule does not cover the network.

    Example:
        >>> from metainit.domains.ct import CTConfig, CTDomain
        >>> from metainit.networks import Siren
        >>> setting = Setting(Siren(out_features=1, width=4, depth=2), CTDomain(CTConfig(size=8)))
        >>> analytic('kaiming')(setting).name
        'kaiming'
    """

    def control(setting: Setting) -> Start:
        drawn = copy.deepcopy(setting.network)
        Analytic(name).init_(drawn, seed=setting.seed, example_inputs=setting.domain.example_inputs())
        return Start(name, weights_of(drawn))

    return control
