"""Start SGLang for a model, or find one that runs, and make an engine on it."""

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, cast

import torch
from transformers import PreTrainedModel

from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.sglang.adapters import AdapterVariants
from twinpass.engine.sglang.engine import SglangEngine
from twinpass.engine.sglang.examine import Expected, require_fitting_arguments
from twinpass.engine.sglang.http import Http
from twinpass.engine.sglang.in_process import CPU, InProcess
from twinpass.engine.sglang.server import Server
from twinpass.engine.sglang.transport import Transport
from twinpass.engine.sglang.variants import Variants
from twinpass.engine.sglang.weights import WeightVariants
from twinpass.engine.subject import Subject
from twinpass.model.causal import CausalModel
from twinpass.model.identity import hash_of, hashes_of, require_finite
from twinpass.model.load import DTYPES, load
from twinpass.model.source import locate
from twinpass.model.trainable import Informed, Lora, Trained
from twinpass.perturb.noise import Distribution
from twinpass.settings import Perturbation


def launch(
    subject: Subject,
    *,
    device: Literal["cpu", "cuda"],
    arguments: Mapping[str, Any],
    noise: Distribution = "binomial",
    perturbation: Perturbation = "tandem",
) -> SglangEngine:
    """An SGLang engine started in this process, whose lanes are ``noise`` away from the weights.

    SGLang's cache is as large as the policy's budget.

    Raises:
        ModelError: the model or the trainable weights cannot be used.
        EngineError: SGLang cannot be started.
    """
    source = locate(subject.path)
    with ExitStack() as stack:
        folder = source.folder
        if source.gguf:
            folder = tempfile.mkdtemp(prefix="twinpass-model-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            subject.model.save_pretrained(folder)
            subject.tokenizer.save_pretrained(folder)
        chosen: dict[str, Any] = {
            "device": device,
            **(CPU if device == "cpu" else {}),
            "dtype": subject.dtype,
            "trust_remote_code": subject.trust_remote_code,
            "page_size": subject.policy.page_size,
            "max_total_tokens": max(1, subject.policy.budget // slot_bytes(subject.model, subject.dtype)),
        }

        def transport(targets: Sequence[str]) -> Transport:
            return InProcess(str(folder), {**chosen, **_for_adapters(subject, targets), **arguments})

        kept = ExitStack() if subject.trainable.adapter else stack  # weights go back to it when they are reset
        return _on(subject, transport, kept, noise, perturbation)


def connect(
    subject: Subject,
    url: str,
    timeout: float,
    *,
    noise: Distribution = "binomial",
    perturbation: Perturbation = "tandem",
) -> SglangEngine:
    """An SGLang engine on the server at ``url``, which answers within ``timeout`` seconds.

    Raises:
        ModelError: the model or the trainable weights cannot be used.
        EngineError: the server cannot be reached, runs something else, or was not started for this.
    """

    def transport(targets: Sequence[str]) -> Transport:
        http = Http(url, timeout)
        try:
            require_fitting_arguments(http.facts(), subject.dtype, subject.trainable, targets)
        except BaseException:
            http.close()
            raise
        return http

    return _on(subject, transport, ExitStack(), noise, perturbation)


def _on(
    subject: Subject,
    transport: Callable[[Sequence[str]], Transport],
    kept: ExitStack,
    noise: Distribution,
    perturbation: Perturbation,
) -> SglangEngine:
    """An engine on SGLang, reached for adapters on modules of these names; what is ``kept`` closes with it."""
    model, adapters = subject.model, subject.trainable.adapter
    require_finite(model)
    (checkpoint, parameters), expected = hashes_of(model), Expected.of(model, subject.tokenizer)
    trained = subject.trainable.attach(model, subject.seed, subject.invocation)
    with ExitStack() as undo:
        beside = _observing(subject, noise)
        if beside is not None:
            undo.callback(beside.close)
        server = Server(transport(() if trained.adapter is None else trained.adapter.targets))
        undo.callback(server.close)
        server.require_hooks(adapters=adapters)
        variants = _variants(subject, server, trained, parameters, noise, inplace=perturbation == "inplace")
        undo.callback(variants.close)
        expected.require(server)
        undo.pop_all()
    base_hash = (
        hash_of(model) if perturbation == "inplace" else checkpoint
    )  # on the lattice, as the embedded engine has it
    server.keeps(kept.pop_all())
    if beside is None:
        cast(Any, model).to("meta")  # SGLang has the weights
    causal, resolution = CausalModel(model), float(torch.finfo(DTYPES[subject.dtype]).eps)
    return SglangEngine(causal, base_hash, server, variants, resolution=resolution, beside=beside)


def _observing(subject: Subject, noise: Distribution) -> TorchEngine | None:
    """The model as the embedded engine runs it, where directions are fitted: SGLang does not tell what enters its modules."""
    if subject.trainable.fitting is None:
        return None
    engine = TorchEngine(
        subject.model,
        subject.trainable,
        reuse=subject.policy,
        invocation=subject.invocation,
        noise=noise,
        seed=subject.seed,
    )
    engine.prepack()
    return engine


def _variants(
    subject: Subject, server: Server, trained: Trained, checkpoint: str, noise: Distribution, *, inplace: bool
) -> Variants:
    if subject.trainable.adapter:
        return AdapterVariants(server, subject.model, trained, noise)

    def again() -> tuple[PreTrainedModel, Trained]:
        model, _ = load(subject.path, subject.dtype, trust_remote_code=subject.trust_remote_code)
        return model, subject.trainable.attach(model, 0)

    return WeightVariants(
        server,
        subject.model,
        checkpoint,
        trained,
        again=again,
        noise=noise,
        inplace=inplace,
        tokenizer=subject.tokenizer,
    )


def _for_adapters(subject: Subject, targets: Sequence[str]) -> dict[str, Any]:
    trainable = subject.trainable
    if not isinstance(trainable, Lora | Informed):
        return {}
    return {
        "enable_lora": True,
        "max_lora_rank": trainable.rank,
        "lora_target_modules": list(targets),
        "max_loras_per_batch": subject.lanes + 2,
    }


def slot_bytes(model: PreTrainedModel, dtype: str) -> int:
    """Bytes of one token's keys and values in all layers."""
    config: Any = model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width) * DTYPES[dtype].itemsize
