"""The engines that a configuration can name, and how each is started."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic.dataclasses import dataclass

from twinpass.engine.base import Engine
from twinpass.engine.sglang.address import KEY, is_address
from twinpass.engine.sglang.arguments import FIXED
from twinpass.engine.subject import Subject
from twinpass.perturb.noise import Distribution
from twinpass.report.environment import memory_bytes
from twinpass.reuse.auto import Auto
from twinpass.reuse.base import Policy, Trains
from twinpass.settings import STRICT, ComputeDtype, Count, NonEmpty, Perturbation, Seconds

if TYPE_CHECKING:
    from twinpass.engine.embedded.engine import TorchEngine

DeviceName = Literal["auto", "cpu", "cuda"]


def chosen(device: DeviceName) -> Literal["cpu", "cuda"]:
    """The device meant; "auto" is a GPU if there is one that torch can use."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def multiplies_tiles() -> bool:
    """Whether the processor has AMX, and the system lets this process use it."""
    from twinpass.perturb.gemm.tiles import available

    return "amx" in available()


@dataclass(frozen=True, config=STRICT, kw_only=True)
class EngineSettings(ABC):
    """The section [engine].

    Args:
        noise: distribution of the directions that estimators of probes ask for.
        perturbation: ``tandem`` (all lanes in one pass, weights never written) or ``inplace`` (the weights walk from
            lane to lane on an exact lattice, and eps is rounded to a power of two).
    """

    noise: Distribution = "binomial"
    perturbation: Perturbation = "tandem"

    def __post_init__(self) -> None:
        if self.perturbation == "inplace" and self.noise == "gaussian":
            raise ValueError("perturbation: 'inplace' needs noise on a grid; set noise to 'binomial' or 'rademacher'")

    @property
    def usual(self) -> Self:
        """The same with weights perturbed as where nothing is said of it."""
        return replace(self, noise=EngineSettings.noise, perturbation=EngineSettings.perturbation)

    @abstractmethod
    def problems(self, built: Mapping[str, Any]) -> list[str]:
        """What in the other sections (those that are valid) this engine cannot do, and what to do about it."""

    def lacks(self, built: Mapping[str, Any], *, begun: bool = False) -> list[str]:
        """What this machine cannot do of a configuration that is sound in itself; to know, torch may have to be imported.

        A run that has ``begun`` elsewhere goes on, and is used, where it is only slower.
        """
        return []

    def receive(self, model: Any) -> None:
        """Move a model that was loaded for this engine to where the engine wants it."""
        return

    @abstractmethod
    def start(self, subject: Subject) -> Engine:
        """An engine at ``theta_0``.

        Raises:
            TwinpassError: the model or its weights cannot be used.
        """


LANES: Mapping[str, str] = {"noise": EngineSettings.noise, "perturbation": EngineSettings.perturbation}
"""The keys that say how weights are perturbed, and what holds where they are left out."""


@dataclass(frozen=True, config=STRICT)
class TorchSettings(EngineSettings):
    """The embedded engine: a Hugging Face model in this process, on ``device``; "auto" takes a GPU if there is one.

    ``chunk_rows`` tokens, of all lanes together, run at a time: by default 1,536 on a CPU and 12,288 on a GPU.
    ``compute_dtype`` "bfloat16": linear layers multiply in bfloat16 beside float32 weights, in which the difference of two signs keeps
    its precision, and adapters theirs; without it, in [model] dtype.
    """

    device: DeviceName = "auto"
    chunk_rows: Count | None = None
    compute_dtype: ComputeDtype | None = None

    def problems(self, built: Mapping[str, Any]) -> list[str]:
        if self.compute_dtype is None:
            return []
        found = []
        names = ("model", "estimator", "trainable", "reuse")
        model, estimator, trainable, policy = (built.get(name) for name in names)
        if model is not None and model.dtype != "float32":
            found.append(
                f'[engine] compute_dtype: "{self.compute_dtype}" is for float32 weights; set [model] dtype = "float32", or leave it out: '
                f"a {model.dtype} model computes in {model.dtype}"
            )
        if self.compute_dtype == "float32":
            return found
        whole = estimator is not None and estimator.whole
        if self.perturbation == "inplace" or (estimator is not None and not estimator.two_sided and not whole):
            found.append(
                '[engine] compute_dtype: "bfloat16" keeps what two signs in one pass differ by, or takes gradients of adapters; '
                'set [estimator] kind = "spsa" or "backprop" and [engine] perturbation = "tandem", or leave it out'
            )
        elif whole and trainable is not None and not trainable.adapter:
            found.append(
                '[engine] compute_dtype: "bfloat16" rounds weights where they are multiplied, so that gradients are taken of adapters beside '
                'them alone; set [trainable] kind = "activated" or "lora", or leave it out'
            )
        if policy is not None and policy.approximate:
            found.append(
                '[engine] compute_dtype: "bfloat16" needs each lane\'s own keys and values; set [reuse] policy = "auto", or leave it out'
            )
        return found

    def lacks(self, built: Mapping[str, Any], *, begun: bool = False) -> list[str]:
        slower = [] if begun else self._of_processor()
        beside, there = [*slower, *self._of_memory(built)], self._of_gpu(built)
        if self.device != "cuda" and not beside and not there:
            return []  # wherever it runs: torch, which says where that is, takes seconds to import
        import torch

        if chosen(self.device) != "cuda":
            return beside
        if not torch.cuda.is_available():
            return ['[engine] device: "cuda" needs a GPU that torch can use, and there is none; set "auto" or "cpu"']
        return there

    def _of_gpu(self, built: Mapping[str, Any]) -> list[str]:
        model, found = built.get("model"), []
        if model is not None and model.dtype == "float64":
            found.append(
                '[model] dtype: weights on a GPU are trained in float32 or bfloat16; set one, or [engine] device = "cpu"'
            )
        if self.compute_dtype == "bfloat16":
            found.append(
                '[engine] compute_dtype: "bfloat16" runs on the CPU only; set [engine] device = "cpu", or [model] dtype = "bfloat16" without it'
            )
        return found

    def _of_processor(self) -> list[str]:
        if self.compute_dtype != "bfloat16" or multiplies_tiles():
            return []
        return [
            '[engine] compute_dtype: "bfloat16" pays where the processor multiplies tiles of it (AMX), and this one does not; '
            "leave it out: products in float32 are as fast"
        ]

    def _of_memory(self, built: Mapping[str, Any]) -> list[str]:
        policy, memory = built.get("reuse"), memory_bytes()
        if policy is None or policy.budget <= memory:
            return []
        return [
            f"[reuse] budget: {policy.budget / 2**30:,.1f} GiB of keys and values do not fit into the {memory / 2**30:,.1f} GiB "
            "that this process may have; lower it"
        ]

    def receive(self, model: Any) -> None:
        model.to(chosen(self.device))

    def start(self, subject: Subject) -> "TorchEngine":
        from twinpass.engine.embedded.engine import TorchEngine

        engine = TorchEngine(
            subject.model,
            subject.trainable,
            reuse=subject.policy,
            chunk_rows=self.chunk_rows,
            compute_dtype=self.compute_dtype,
            invocation=subject.invocation,
            noise=self.noise,
            perturbation=self.perturbation,
            seed=subject.seed,
            reload=subject.reload,
            tokenizer=subject.tokenizer,
        )
        engine.prepack()
        return engine


@dataclass(frozen=True, config=STRICT)
class SglangSettings(EngineSettings):
    """A real SGLang: started in this process, or a server that runs at ``url``.

    Adapters are loaded as lanes; other weights are moved inside SGLang's processes. Informed directions are fitted here, by the model in
    main memory once more. ``device`` "auto" takes a GPU if there is one.
    ``arguments`` go to ``sgl.Engine`` as they are, such as ``mem_fraction_static``. A server has to answer within ``timeout`` seconds.
    """

    device: DeviceName = "auto"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    url: NonEmpty | None = None
    timeout: Seconds = 600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if fixed := sorted(FIXED.keys() & self.arguments.keys()):
            raise ValueError("; ".join(f"arguments: {name!r} is set by twinpass: {FIXED[name]}" for name in fixed))
        if self.url is None and self.timeout != SglangSettings.timeout:
            raise ValueError("timeout: only a server at a url has one; leave it out, or set url")
        if self.url is None:
            return
        if not is_address(self.url):
            raise ValueError(f"url: expected an address such as http://127.0.0.1:30000, got {self.url!r}")
        if urlsplit(self.url).username or urlsplit(self.url).password:
            raise ValueError(f"url: keys do not belong into a configuration; put them into {KEY}")
        if self.arguments or self.device != "auto":
            raise ValueError("url: the server has been started; leave arguments and device out")

    def problems(self, built: Mapping[str, Any]) -> list[str]:
        trainable, estimator, policy = built.get("trainable"), built.get("estimator"), built.get("reuse")
        found = []
        adapter = trainable is not None and trainable.adapter
        if estimator is not None and estimator.differentiates:
            found.append('[engine] kind: "sglang" takes no derivatives; set [estimator] kind to "spsa" or "one_sided"')
        if (objective := built.get("objective")) is not None and getattr(objective, "regularise", "none") != "none":
            found.append(
                '[objective] regularise: was not tried on "sglang"; leave it out, or set [engine] kind = "torch"'
            )
        if isinstance(getattr(trainable, "targets", None), str):
            found.append(
                '[trainable] targets: on "sglang" modules are named, as it makes room for them before the model is looked at; '
                'set such as ["o_proj", "down_proj"]'
            )
        if self.perturbation == "inplace" and adapter:
            found.append('[engine] perturbation: on "sglang" adapters are loaded, and no weight walks; set "tandem"')
        if policy is not None and (policy.approximate or _shares_layers(policy)):
            found.append(
                '[engine] kind: "sglang" reuses what is exact within a lane, or before an activation point; set [reuse] policy to "auto"'
            )
        model = built.get("model")
        if model is not None and model.dtype == "float64":
            found.append('[model] dtype: SGLang has no float64; set "float32"')
        elif model is not None and model.dtype != "float32" and adapter:
            found.append(
                f"[model] dtype: SGLang holds adapters in {model.dtype}, which would round perturbations away; "
                'set "float32", or [engine] kind = "torch"'
            )
        if policy is not None and policy.disk is not None:
            found.append('[engine] kind: "sglang" keeps its cache in memory; leave [reuse] spill out')
        if self.url and policy is not None and (policy.budget, policy.page_size) != (Auto().budget, Auto().page_size):
            found.append(
                "[reuse] budget and page_size: the server at [engine] url has its own; leave them out, or --set reuse.budget=1GiB "
                "and reuse.page_size=1, the defaults"
            )
        return found

    def start(self, subject: Subject) -> Engine:
        from twinpass.engine.sglang.launch import connect, launch

        if self.url is not None:
            return connect(subject, self.url, self.timeout, noise=self.noise, perturbation=self.perturbation)
        return launch(
            subject,
            device=chosen(self.device),
            arguments=self.arguments,
            noise=self.noise,
            perturbation=self.perturbation,
        )


def _shares_layers(policy: Policy) -> bool:
    """Whether lanes are to share the lower layers of all tokens; "auto" asks for that where it can be had."""
    if isinstance(policy, Auto):
        return False
    try:
        shared = policy.sharing(Trains(layers=2, first=1))
    except ValueError:
        return False
    return shared is not None and shared.tokens == "all"
