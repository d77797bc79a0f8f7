"""The hook through which SGLang's processes take commands of twinpass's, and what they read of SGLang to carry them out."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

TARGET = (
    "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager.update_weights_from_tensor"
)
"""The method that the hook stands around: every process runs it, and answers with a text."""


def take(original: Callable[..., Any], updater: Any, request: Any) -> Any:
    """Carry out a request that is a command; others are SGLang's own."""
    from twinpass.engine.sglang.inside import worker  # in SGLang's processes only when it is needed

    text = request.load_format or ""
    if not text.startswith(worker.COMMAND):
        return original(updater, request)
    from sglang.srt.managers.io_struct import UpdateWeightsFromTensorReqOutput

    found = worker.carry_out(
        text.removeprefix(worker.COMMAND),
        idle=updater.is_fully_idle,
        flush=updater.flush_cache,
        run=partial(_run, updater),
    )
    found = _agreed(found, updater.tp_cpu_group)
    return UpdateWeightsFromTensorReqOutput(success="error" not in found, message=json.dumps(found))


def _run(updater: Any, command: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from twinpass.engine.sglang.inside import activated, terms, worker

    if command["do"] == "check":
        activated.check(updater.scheduler, adapters=command["adapters"])
        return {}
    if command["do"] == "terms":
        return dict(terms.counts)
    runner = updater.tp_worker.model_runner
    with torch.inference_mode():
        return worker.answer(updater.tp_worker, command, runner.model, partial(_checkpoint, runner))


def _checkpoint(runner: Any) -> dict[str, Any]:
    """The tensors that SGLang's model was loaded from, by name; on disk until they are read."""
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.model_loader.loader import DefaultModelLoader, get_model_loader

    loader = get_model_loader(LoadConfig(load_format="auto"), runner.model_config)
    return dict(loader._get_weights_iterator(DefaultModelLoader.Source.init_new(runner.model_config, runner.model)))


def _agreed(found: dict[str, Any], group: Any) -> dict[str, Any]:
    """The answer that all processes give, or the first error of any."""
    import torch

    answers: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(answers, found, group=group)
    apart = {"error": "SGLang's processes gave different answers; start it again"}
    return next(
        (answer for answer in answers if "error" in answer), found if answers.count(found) == len(answers) else apart
    )
