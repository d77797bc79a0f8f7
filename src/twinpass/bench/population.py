"""A population that writes: beside the same number of tokens without lanes, and beside what public evolution strategies do."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial, wraps
from typing import Any, TypeVar

import torch

from twinpass.bench.naive import NaiveMezo
from twinpass.bench.phases import SecondsByPhase
from twinpass.config.compose import Session, build_embedded
from twinpass.config.schema import Config
from twinpass.core import BASE, Lane, Probe, Prompt, Sampling, Term, Work
from twinpass.engine.base import Engine
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.scoring import reading, writing
from twinpass.errors import DataError
from twinpass.estimate.spsa import Spsa
from twinpass.model.load import load
from twinpass.model.trainable import Activated, Lora, Trainable
from twinpass.objective.completion import Completion
from twinpass.objective.goal import At
from twinpass.objective.population import Population
from twinpass.objective.rewards import Rewards
from twinpass.perturb.noise import derive_seed
from twinpass.reuse.auto import Auto
from twinpass.task.example import Example

KINDS: Mapping[str, Trainable] = {"activated": Activated(), "lora": Lora()}
EPS = 1e-2

PHASES: tuple[tuple[str, Any, str], ...] = (
    ("prefill", reading.PromptReader, "read"),
    ("decode", writing.PackedWriter, "_grow"),
    ("choosing", writing, "choose"),
    ("reward", Rewards, "__call__"),
)
"""Phase, and where the function lies that does its work; one inside another takes its time from it. The rest is ``other``."""

WRITING = ("decode", "choosing")
"""The phases after prompts have been read."""

Told = Callable[[str], None]
T = TypeVar("T")


class Stopwatch(SecondsByPhase):
    """Seconds of the phases in which a population writes."""

    def __init__(self) -> None:
        super().__init__(name for name, *_ in PHASES)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what runs inside the block."""
        with ExitStack() as stack:
            for name, owner, function in PHASES:
                stack.callback(setattr, owner, function, getattr(owner, function))
                setattr(owner, function, self._around(name, getattr(owner, function)))
            self.begin()
            yield
            self.switch()

    def _around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            return self.within(name, function, args, kwargs)

        return counted


@dataclass(frozen=True)
class Size:
    """How many write how much: ``lanes`` (an even number), each ``tokens`` tokens for each of ``prompts``."""

    lanes: int
    prompts: int
    tokens: int

    @property
    def total(self) -> int:
        """Tokens that are written in a step."""
        return self.lanes * self.prompts * self.tokens


def measure(config: Config, size: Size, repeats: int, told: Told = lambda part: None) -> dict[str, Any]:
    """Seconds of a step's texts, by what is trained, and of the others, all in turn.

    A step perturbs, writes and rewards; the weights move after it, so that what may be kept from step to step is kept, and nothing else.
    ``bare`` is as many texts of the base lane on the same engine. ``public`` perturbs the whole model and lets Hugging Face's ``generate``
    write with its own cache, one member after another.
    """
    found: dict[str, Any] = {**asdict(size), "repeats": repeats}
    public: list[float] = []
    for kind, trainable in KINDS.items():
        with _engine(config, trainable, size) as (engine, goal, examples):
            rival = _Public(config, size) if not public else None
            ours, bare, work = list[float](), list[float](), Work()
            watches = Stopwatch(), Stopwatch()
            first, _ = timed(lambda: lanes_write(engine, goal, examples, size, 0))
            base_writes(engine, goal, examples, size)
            told(f"{kind}, first step")
            for step in range(1, repeats + 1):
                with watches[0].running():
                    seconds, took = timed(partial(lanes_write, engine, goal, examples, size, step))
                ours.append(seconds)
                work += took
                with watches[1].running():
                    bare.append(timed(partial(base_writes, engine, goal, examples, size))[0])
                told(f"{kind}, step {step}")
                if rival is not None:
                    public.append(timed(partial(rival.step, examples, goal.sampling, step))[0])
                    told(f"public, step {step}")
            found[kind] = _summary(size, ours, bare, public, first, watches, work)
    found["public"] = {"seconds": statistics.median(public), "spread": _spread(public), **_rate(size, public)}
    return found


def _summary(
    size: Size,
    ours: Sequence[float],
    bare: Sequence[float],
    public: Sequence[float],
    first: float,
    watches: tuple[Stopwatch, Stopwatch],
    work: Work,
) -> dict[str, Any]:
    seconds, alone, theirs = (statistics.median(each) for each in (ours, bare, public))
    phases, others = (_shares(watch.seconds) for watch in watches)
    ours_after, bare_after = (sum(shares[name] for name in WRITING) for shares in (phases, others))
    return {
        "seconds": seconds,
        "spread": _spread(ours),
        **_rate(size, ours),
        "first_step_seconds": first,
        "phases": phases,
        "hit_rate": work.hit_rate,
        "bare": {"seconds": alone, "spread": _spread(bare), **_rate(size, bare), "phases": others},
        "of_bare": alone / seconds,
        "of_bare_prompts_read": alone * bare_after / (seconds * ours_after),
        "ratio": theirs / seconds,
    }


def _shares(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: own / sum(seconds.values()) for name, own in seconds.items()}


def _rate(size: Size, seconds: Sequence[float]) -> dict[str, float]:
    return {"tokens_per_second": size.total / statistics.median(seconds)}


def _spread(seconds: Sequence[float]) -> list[float]:
    return [min(seconds), max(seconds)]


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """Seconds that a call took, and what it came to."""
    started = time.perf_counter()
    found = run()
    return time.perf_counter() - started, found


@contextmanager
def _engine(
    config: Config, trainable: Trainable, size: Size
) -> Iterator[tuple[TorchEngine, Population, Sequence[Example]]]:
    reuse = Auto(budget=config.reuse.budget, page_size=config.reuse.page_size)
    estimator = Spsa(probes=size.lanes // 2)
    session = build_embedded(replace(config, trainable=trainable, estimator=estimator, reuse=reuse))
    goal, examples = writers(session, size)
    with closing(session.engine), closing(goal):
        yield session.engine, goal, examples


def writers(session: Session[Any], size: Size) -> tuple[Population, Sequence[Example]]:
    """What is measured of a session: texts of exactly so many tokens, one a lane and prompt.

    Raises:
        DataError: it has fewer prompts.
    """
    goal, examples = session.plan.objective, session.plan.train[: size.prompts]
    assert isinstance(goal, Population)
    if len(examples) < size.prompts:
        raise DataError(f"{size.prompts} prompts are asked for, and there are {len(examples)}; give fewer: --batch")
    sampling = replace(goal.sampling, max_tokens=size.tokens, stop=(), stop_tokens=())
    return replace(goal, sampling=sampling, samples=1), examples


def lanes_write(engine: Engine, goal: Population, examples: Sequence[Example], size: Size, step: int) -> Work:
    """A step's texts and rewards, and an update."""
    probes = [Probe(derive_seed(step, "probe", i)) for i in range(size.lanes // 2)]
    lanes = [Lane(probe, sign, EPS) for probe in probes for sign in (1, -1)]
    found = goal.measure(engine, examples, lanes, None, At(seed=step))
    engine.update([Term(probe.seed, 1e-6) for probe in probes])
    return found.work


def base_writes(engine: Engine, goal: Population, examples: Sequence[Example], size: Size) -> None:
    """As many texts without lanes: each prompt is continued as often as there are lanes."""
    prompts = [
        Prompt(one.prompt, one.suffix_start, row, sample)
        for row, one in enumerate(examples)
        for sample in range(size.lanes)
    ]
    engine.generate(prompts, [BASE], goal.sampling, goal.decode)


class _Public:
    """The whole model perturbed in place from a seed, members one after another."""

    def __init__(self, config: Config, size: Size) -> None:
        self._model: Any = load(**asdict(config.model))[0]
        self._mezo = NaiveMezo(self._model, list(self._model.parameters()), Completion(), lean=True)
        self._size = size

    def step(self, examples: Sequence[Example], sampling: Sampling, step: int) -> None:
        """Every member writes as much as a lane does."""
        longest = max(len(one.prompt) for one in examples)
        ids, mask = torch.zeros(2, len(examples), longest, dtype=torch.long)
        for row, one in enumerate(examples):
            ids[row, longest - len(one.prompt) :], mask[row, longest - len(one.prompt) :] = torch.tensor(one.prompt), 1
        options = {"max_new_tokens": sampling.max_tokens, "min_new_tokens": sampling.max_tokens, "pad_token_id": 0}
        for member in range(self._size.lanes):
            seed, eps = derive_seed(step, "probe", member // 2) % 2**63, EPS if member % 2 == 0 else -EPS
            self._mezo.perturb(seed, eps)
            with torch.inference_mode():
                self._model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    do_sample=True,
                    temperature=sampling.temperature,
                    top_k=0,
                    **options,
                )
            self._mezo.perturb(seed, -eps)
