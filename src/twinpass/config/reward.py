"""The task of writing what functions reward."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import field
from functools import cached_property
from typing import Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from twinpass.config.tasks import Reading, TaskSettings, WritingTools
from twinpass.errors import DataError
from twinpass.model.defaults import Defaults, rewarded
from twinpass.model.trainable import Trainable
from twinpass.objective.goal import Goal
from twinpass.objective.population import Population
from twinpass.objective.reward_functions import RewardFunction, load_reward, named_apart
from twinpass.objective.rewards import OnError as OnRewardError
from twinpass.objective.rewards import Rewards, Shaping
from twinpass.settings import STRICT, Seconds, Several
from twinpass.task.reward import RewardTemplate
from twinpass.task.rows import Item, Row
from twinpass.task.tokens import ids_of

Divergence = Annotated[float, Field(ge=0, le=1e6)]
"""What a nat costs."""

BETA = 0.1
"""Nearer to the model as it was than GRPO's 0.04 (arXiv 2402.03300), as measured (docs/rewards.md)."""

WorkerCount = Annotated[int, Field(ge=0, le=1024)]
"""Processes beside this one."""


@dataclass(frozen=True, config=STRICT)
class RewardTask(TaskSettings, RewardTemplate):
    """Write texts that functions reward.

    ``rewards`` name functions, as "file.py:function" (relative to the configuration file) or "package.module:function", or reward
    models, by a folder or a name on the hub, and ``weights`` what each counts (1, if none are given). Of every prompt each lane writes ``samples`` texts (by default 1, 4 of a
    held-out one, and 16 where texts are learned from), as [generation] says. ``shaping``: a
    lane's loss is minus its mean reward ("raw"), the same in standard deviations over all lanes ("zscore", the default) or over the texts of each
    prompt ("prompt"), or its place among the lanes ("rank").
    Whole gradients are taken of texts that the base lane wrote, for ``steps_per_generation`` steps at once, each of which learns from
    those of its own batch of prompts (by default so many that 24 prompts are written to). They are held to what the model was: a nat a token away from it costs ``beta`` (by default
    0.1), in standard deviations of rewards.
    A call may take ``reward_timeout`` seconds, in one of ``workers`` processes, or in this one. A reward that raises, hangs or is no
    number ends the run ("stop"), or its text goes without ("skip"): ``on_reward_error``.
    """

    chooses: ClassVar[bool] = False
    writes: ClassVar[bool] = True

    rewards: Annotated[tuple[str | Callable[..., Any], ...], Field(strict=False)] = field(default=(), kw_only=True)
    weights: Annotated[tuple[float, ...], Field(strict=False)] = field(default=(), kw_only=True)
    samples: Several | None = field(default=None, kw_only=True)
    shaping: Shaping | None = field(default=None, kw_only=True)
    steps_per_generation: Several | None = field(default=None, kw_only=True)
    beta: Divergence | None = field(default=None, kw_only=True)
    reward_timeout: Seconds = field(default=60.0, kw_only=True)
    on_reward_error: OnRewardError = field(default="stop", kw_only=True)
    workers: WorkerCount = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights and len(self.weights) != len(self.rewards):
            raise ValueError(f"weights: {len(self.weights)} for {len(self.rewards)} rewards; give one for each")
        if not all(map(math.isfinite, self.weights)) or (self.weights and not any(self.weights)):
            raise ValueError(f"weights: expected finite numbers, not all of them 0, got {list(self.weights)}")

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.rewards:
            found.append('[task] rewards: is missing; name functions such as "rewards.py:length"')
        if self.shots:
            found.append("[task] shots: prompts are not solved; write demonstrations into prompt, or leave shots out")
        return found

    @cached_property
    def functions(self) -> tuple[RewardFunction, ...]:
        """The reward functions.

        Raises:
            RewardError: one is not there, or has no form that is known.
        """
        found = [load_reward(each) if isinstance(each, str) else RewardFunction.of(each) for each in self.rewards]
        return tuple(named_apart(found))

    def rows(self) -> tuple[list[Item], list[Item] | None]:
        assert self.functions  # refused before anything is read
        return super().rows()

    def reading(self, rows: Sequence[Row]) -> Reading:
        return Reading(self, None)

    def suited(self, trainable: type[Trainable] | Trainable) -> Defaults:
        return rewarded(trainable.defaults)

    def goal(self, reading: Reading, tools: WritingTools) -> Goal:
        for stop in tools.generation.stop:
            if stop not in tools.tokenizer.decode(list(ids_of(tools.tokenizer, stop, special=False))):
                raise DataError(
                    f"generation.stop: the tokenizer cannot write {stop!r}, so that it would never end a text; give another, or leave it out"
                )
        rewards = Rewards(self.functions, self.weights, self.reward_timeout, self.on_reward_error, workers=self.workers)
        tokenizer = tools.tokenizer
        return Population(
            rewards,
            tools.generation.sampling(tools.ends),
            lambda tokens: str(tokenizer.decode(list(tokens), skip_special_tokens=True)),
            self.samples,
            self.shaping or "zscore",
            self.steps_per_generation,
            BETA if self.beta is None else self.beta,
        )

    @property
    def ground(self) -> dict[str, str]:
        code = "\0".join(function.code for function in self.functions)
        return {"rewards": hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest()}
