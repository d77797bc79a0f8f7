"""A population that writes: beside the same number of tokens without lanes, and beside what public evolution strategies do."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial, wraps
from typing import Any, TypeVar

import torch

from twinpass.bench.compare import DTYPES
from twinpass.bench.gemm import Loop, Shape, recorded
from twinpass.bench.naive import NaiveMezo
from twinpass.bench.phases import Clock, SecondsByPhase
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


PEAK = Shape(1024, 1024, 1024, times=4)
"""Products that come as near to what the processor can do as any."""


class _Products:
    """What a step multiplies by the model's weights, bare: nothing else is left of it. Adapters' own products are not counted.

    A step is run to see them, and under a clock, to see what the engine's time goes into.
    """

    def __init__(self, engine: TorchEngine, size: Size, step: Callable[[], Any], dtype: torch.dtype) -> None:
        clock = Clock()
        with clock.running(), recorded(engine.model, set(engine.parameters), size.lanes) as shapes:
            step()
        self.phases, self.flops = clock.shares(), sum(shape.flops for shape in shapes)
        self._loop, self._peak = Loop(shapes, dtype), Loop([PEAK], dtype)

    def seconds(self) -> tuple[float, float]:
        """How long they take now, and how long they would at the rate of :data:`PEAK`."""
        return self._loop.seconds(), self.flops / PEAK.flops * self._peak.seconds()


@dataclass
class _Turns:
    """Seconds of each turn: a step, as many texts without lanes, those of prompts apart, the products alone, those at the processor's peak."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    apart: list[float] = field(default_factory=list)
    products: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)
    work: Work = field(default_factory=Work)
    watches: tuple[Stopwatch, Stopwatch] = field(default_factory=lambda: (Stopwatch(), Stopwatch()))


def measure(config: Config, size: Size, repeats: int, told: Told = lambda part: None) -> dict[str, Any]:
    """Seconds of a step's texts, by what is trained, and of the others, all in turn.

    A step perturbs, writes and rewards; the weights move after it, so that what may be kept from step to step is kept, and nothing else.
    ``bare`` is as many texts of the base lane on the same engine, ``apart`` the same where no two of them share their prompt, so that it reads
    as many as LoRA's lanes do. ``public`` perturbs the whole model and lets Hugging Face's ``generate``
    write with its own cache, one member after another. ``products`` are the step's products with the model's weights and nothing else:
    no step that makes them can be faster, in this precision.
    """
    found: dict[str, Any] = {**asdict(size), "repeats": repeats}
    public: list[float] = []
    for kind, trainable in KINDS.items():
        with _engine(config, trainable, size) as (engine, goal, examples):
            rival = _Public(config, size) if not public else None
            turns, lanes = _Turns(), partial(lanes_write, engine, goal, examples, size)
            first, _ = timed(partial(lanes, 0))
            for apart in (False, True):
                base_writes(engine, goal, examples, size, apart=apart)
            products = _Products(engine, size, partial(lanes, 0), DTYPES[config.model.dtype])
            told(f"{kind}, first step")
            for step in range(1, repeats + 1):
                with turns.watches[0].running():
                    seconds, took = timed(partial(lanes, step))
                turns.ours.append(seconds)
                turns.work += took
                with turns.watches[1].running():
                    turns.bare.append(timed(partial(base_writes, engine, goal, examples, size))[0])
                turns.apart.append(timed(partial(base_writes, engine, goal, examples, size, apart=True))[0])
                for taken, seconds in zip((turns.products, turns.peak), products.seconds(), strict=True):
                    taken.append(seconds)
                told(f"{kind}, step {step}")
                if rival is not None:
                    public.append(timed(partial(rival.step, examples, goal.sampling, step))[0])
                    told(f"public, step {step}")
            found[kind] = {"first_step_seconds": first, **_summary(size, turns, products, public)}
    found["public"] = {"seconds": statistics.median(public), "spread": _spread(public), **_rate(size, public)}
    return found


def _summary(size: Size, turns: _Turns, products: _Products, public: Sequence[float]) -> dict[str, Any]:
    lists = (turns.ours, turns.bare, turns.apart, public, turns.products)
    seconds, alone, apart, theirs, limit = (statistics.median(each) for each in lists)
    phases, others = (_shares(watch.seconds) for watch in turns.watches)
    ours_after, bare_after = (sum(shares[name] for name in WRITING) for shares in (phases, others))
    peak = min(turns.peak)
    return {
        "seconds": seconds,
        "spread": _spread(turns.ours),
        **_rate(size, turns.ours),
        "phases": phases,
        "engine_phases": products.phases,
        "hit_rate": turns.work.hit_rate,
        "bare": {"seconds": alone, "spread": _spread(turns.bare), **_rate(size, turns.bare), "phases": others},
        "apart": {"seconds": apart, "spread": _spread(turns.apart), **_rate(size, turns.apart)},
        "of_bare": alone / seconds,
        "of_apart": apart / seconds,
        "of_bare_prompts_read": alone * bare_after / (seconds * ours_after),
        "ratio": theirs / seconds,
        "products": {
            "flops": products.flops,
            "seconds": limit,
            "spread": _spread(turns.products),
            "share": limit / seconds,
            "peak_seconds": peak,
            "of_peak": peak / limit,
            "ratio": theirs / limit,
            "peak_ratio": theirs / peak,
        },
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
    session = build_embedded(
        replace(config, trainable=trainable, estimator=estimator, reuse=reuse, engine=config.engine.usual)
    )
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


def base_writes(
    engine: Engine, goal: Population, examples: Sequence[Example], size: Size, *, apart: bool = False
) -> None:
    """As many texts without lanes: each prompt is continued as often as there are lanes.

    ``apart``: each time by a turn of its tokens that is its own, so that a cache finds no two of its own that begin alike. The work of each is the same.
    """
    prompts = [
        Prompt(_turned(one.prompt, sample) if apart else one.prompt, one.suffix_start, row, sample)
        for row, one in enumerate(examples)
        for sample in range(size.lanes)
    ]
    engine.generate(prompts, [BASE], goal.sampling, goal.decode)


def _turned(tokens: Sequence[int], by: int) -> tuple[int, ...]:
    by %= len(tokens)
    return (*tokens[by:], *tokens[:by])


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
