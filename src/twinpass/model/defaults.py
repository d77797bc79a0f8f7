"""What suits a choice of weights, where nothing is said: the one table (docs/defaults.md)."""

from dataclasses import dataclass, replace
from typing import Literal

from twinpass.settings import Kinds

WRITERS = (
    "o_proj",
    "down_proj",
    "out_proj",
    "c_proj",
    "fc2",
    "fc_out",
    "dense",
    "dense_4h_to_h",
    "wo",
    "w2",
    "Wo",
    "output",
    "o_b_proj",
)
"""What usual architectures call the layers that write into the residual stream: attention's output projection and the MLP's."""


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
"""What most architectures call attention's projections, and what stands for those of the others."""

OUTPUTS = ("o_proj", "down_proj")
"""The same of what writes into the residual stream."""


@dataclass(frozen=True)
class Defaults:
    """What suits a choice of weights, where a configuration or a call of ``finetune`` does not say (docs/defaults.md)."""

    eps: float
    lr: float
    steps: int
    batch_size: int = 16
    eval_every: int = 0
    patience: int = 0
    schedule: Literal["constant", "linear"] = "linear"
    estimator: Literal["spsa", "one_sided", "gauss_newton", "backprop", "feedback"] = "spsa"
    probes: int | None = None
    targets: Kinds | None = None
    first: int | None = None

    @property
    def along_probes(self) -> bool:
        """Whether lr, steps and batch_size are meant for updates along probes."""
        return self.estimator not in ("backprop", "feedback")


WEIGHTS = Defaults(eps=1e-3, lr=3e-5, steps=120)
ADAPTERS = Defaults(eps=1e-2, lr=4e-3, steps=400)
CHOSEN_ANYWHERE = Defaults(eps=1e-2, lr=4e-3, steps=40, batch_size=16, eval_every=8, estimator="backprop")
"""For adapters along the exact gradient of options, of which a row has a token or two to learn from."""
CHOSEN = replace(CHOSEN_ANYWHERE, batch_size=32, targets="outputs", first=-20)
"""The same where adapters act on the answer alone: on output projections of upper layers, so that a step runs through these only."""
EXACT = Defaults(eps=1e-2, lr=4e-3, steps=40, batch_size=8, eval_every=10, estimator="backprop")
"""For adapters along the exact gradient of texts, of which eight have some hundred tokens to learn from."""
WRITTEN = Defaults(eps=1e-2, lr=4e-3, steps=48, batch_size=2, eval_every=12, estimator="backprop")
"""For adapters along the exact gradient of sampled texts, which are written for 12 steps at once."""
PROJECTIONS = Defaults(eps=1e-3, lr=2e-3, steps=40, batch_size=32, eval_every=8, estimator="feedback")
"""For the model's own weights along feedback, where lr is the relative length of a step; of options."""
PROJECTIONS_OF_TEXTS = replace(PROJECTIONS, batch_size=8)
"""The same of texts, of which eight have some hundred tokens to learn from."""
INFORMED = Defaults(
    eps=1e-2, lr=1.0, steps=12, batch_size=64, eval_every=1, patience=2, schedule="constant", estimator="gauss_newton"
)


MANY = 16
"""Options that as many steps are enough for as for two; of twice as many, each comes by half as often."""
MOST_TIMES = 4


def among(options: int, suited: Defaults) -> Defaults:
    """What suits the same weights where so many options are to be told apart: steps grow with them, up to four times as many."""
    times = max(1, min(MOST_TIMES, -(-options // MANY)))
    return replace(suited, steps=times * suited.steps, eval_every=times * suited.eval_every)


def rewarded(suited: Defaults) -> Defaults:
    """What suits the same weights where losses are rewards of texts in standard deviations, so that a loss is about 1 whatever is rewarded."""
    return replace(
        suited,
        lr=suited.lr / 4,
        steps=100,
        batch_size=8,
        eval_every=20,
        patience=0,
        schedule="linear",
        estimator="one_sided",
        probes=8,
    )
