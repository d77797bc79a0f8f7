"""The contract of an objective."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from twinpass.core import Request, Score
from twinpass.errors import ModelError
from twinpass.task.example import Example


class Objective(ABC):
    """What is minimised, and what is reported. Scores come in the order of the requests.

    One that ``compares`` needs examples with options to choose from; a ``curved`` one has :meth:`gradient` and :meth:`curvature`.
    """

    metric_name: ClassVar[str]
    compares: ClassVar[bool] = False
    curved: ClassVar[bool] = False

    likelihood: ClassVar[bool] = False
    """Whether the loss is the negative log-likelihood of texts, so that one that doubles is a divergence."""

    @abstractmethod
    def requests(self, examples: Sequence[Example]) -> list[Request]:
        """What has to be scored for a batch."""

    @abstractmethod
    def loss(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        """The mean loss of the batch (nats); it need not be differentiable."""

    def gradient(self, examples: Sequence[Example], scores: Sequence[Score]) -> list[Score]:
        """The loss's derivative with respect to every score, in their shapes.

        Raises:
            ModelError: the loss has none.
        """
        raise ModelError(f"{type(self).__name__} has no derivative; use estimator.kind = 'spsa', which needs none")

    def curvature(
        self, examples: Sequence[Example], scores: Sequence[Score], tangents: Sequence[Sequence[Score]]
    ) -> NDArray[np.float64]:
        """``t_k^T C t_l`` [q, q] for q directions of the scores, with the loss's curvature C by them: positive semidefinite.

        Raises:
            ModelError: the loss has none.
        """
        raise ModelError(f"{type(self).__name__} has no curvature; use estimator.kind = 'spsa', which needs none")

    @abstractmethod
    def metric(self, examples: Sequence[Example], scores: Sequence[Score]) -> float:
        """The mean of the reported metric over the batch; larger is better."""
