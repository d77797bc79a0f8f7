"""Weights of the model itself, moved inside SGLang's processes: they are the embedded engine's, to the bit, and never scored when they are not."""

import asyncio
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from moved_lanes import EPS, embedded_of, engine_of, lanes_of
from real_sglang import LAYERS, OPTIONS, SHOTS, TEXTS, TOLERANCE, Loaded, engines, requests_of, worst
from safetensors.torch import load_file

from twinpass.core import BASE, Term
from twinpass.engine.sglang.in_process import InProcess
from twinpass.engine.sglang.server import Server
from twinpass.engine.sglang.weights import WeightVariants, _digest
from twinpass.errors import EngineError
from twinpass.model.trainable import Full, Layers, Pattern, Trainable
from twinpass.perturb.noise import Distribution

BLOCKS = Layers(first=LAYERS - 4, last=LAYERS, block=2)


@pytest.mark.parametrize(
    ("trainable", "noise", "inplace", "block"),
    [
        (Full(), "gaussian", False, None),
        (Full(), "binomial", True, None),
        (BLOCKS, "rademacher", True, 1),
        (Pattern("(v_proj|up_proj|norm).*weight"), "binomial", False, None),
    ],
    ids=["full-copied", "full-inplace", "blocks-inplace", "pattern-copied"],
)
def test_losses_and_weights_are_the_embedded_engines(
    loaded: Loaded,
    server: Server,
    tmp_path: Path,
    trainable: Trainable,
    noise: Distribution,
    inplace: bool,
    block: int | None,
) -> None:
    model, tokenizer = loaded
    requests, lanes = requests_of(tokenizer)[:4], [*lanes_of(7, block), BASE]
    embedded = embedded_of(model, trainable, noise=noise, inplace=inplace)
    with engine_of(model, server, trainable, noise=noise, inplace=inplace) as sglang:
        assert sglang.trained == embedded.trained
        assert trainable != Full() or sglang.trained == sum(parameter.numel() for parameter in model.parameters())
        start = sglang.score(requests, lanes).values
        assert worst(start[:1], start[1:2]) > 20 * TOLERANCE, "the signs must differ, or nothing is tested"
        assert worst(start, embedded.score(requests, lanes).values) < TOLERANCE
        for step in range(2):
            for engine in (embedded, sglang):
                engine.update([Term(5 + step, 1e-5, block), Term(90 + step, -3e-6, block)])
        after = sglang.score(requests, lanes_of(8, block)).values
        assert worst(after, embedded.score(requests, lanes_of(8, block)).values) < TOLERANCE
        folder = sglang.save(tmp_path)  # compares SGLang's weights with the replayed ones, to the bit
        embedded.settle()
        saved = load_file(folder / "model.safetensors")
        assert all(torch.equal(saved[name], tensor) for name, tensor in embedded.parameters.items())
        sglang.reset()
        assert worst(sglang.score(requests, [BASE]).values, start[2:]) == 0.0, "reset is exact"


def test_moves_leave_no_trace(loaded: Loaded, server: Server) -> None:
    """In place, without a copy: SGLang's own weights come back to the bit."""
    model, _ = loaded
    trainable = Pattern("layers.0.mlp")
    with engine_of(model, server, trainable, noise="binomial", inplace=True) as sglang:
        variants = cast(WeightVariants, sglang._variants)
        before = variants._command("digest")["digest"]
        for seed in range(50):
            for lane in lanes_of(seed):
                variants._move_to(lane)
        assert variants._command("digest")["digest"] != before
        variants._move_to(BASE)
        assert variants._command("digest")["digest"] == before
    snapped = deepcopy(model)
    local = embedded_of(snapped, trainable, noise="binomial", inplace=True)
    assert _digest(local.parameters) == before


def test_each_lane_shares_its_own_prefixes_and_no_others(
    loaded: Loaded, server: Server, rows: Callable[[], int]
) -> None:
    model, tokenizer = loaded
    requests = requests_of(tokenizer, SHOTS)
    with engine_of(model, server, Full(), noise="binomial", inplace=True) as sglang:
        rows()
        work = sglang.score(requests, lanes_of(3)).work
        assert rows() * sglang.layers == work.computed
        assert work.hit_rate > 0.5
        assert sglang.score(requests, lanes_of(3)).work.computed == work.computed, "another visit finds nothing"
        base = sglang.score(requests, [BASE]).work
        again = sglang.score(requests, [BASE]).work
        assert again.computed < base.computed, "weights that have not moved find their prefixes"
    assert len(TEXTS) * len(OPTIONS) == len(requests)


def test_a_server_that_is_busy_is_not_scored_on_old_keys_and_values(loaded: Loaded, server: Server) -> None:
    """A flush is refused while requests run. The weights stay where they are then, and training stops with an error."""
    model, tokenizer = loaded
    requests, engine = requests_of(tokenizer)[:2], cast(InProcess, server._transport)._engine
    with engine_of(model, server, Full(), noise="binomial", inplace=True) as sglang:
        first = sglang.score(requests, [BASE]).values
        patience, server._patience = server._patience, 0.3

        async def with_a_request_that_runs() -> None:
            """As another user's; paused, so that it runs for as long as is needed."""
            sampling = {"max_new_tokens": 400, "ignore_eos": True, "temperature": 0}
            running.append(
                asyncio.ensure_future(engine.async_generate(input_ids=[5, 6, 7] * 9, sampling_params=sampling))
            )
            await asyncio.sleep(1.5)
            await engine.tokenizer_manager.pause_generation(_request("PauseGenerationReqInput", mode="in_place"))

        running: list[Any] = []
        try:
            engine.loop.run_until_complete(with_a_request_that_runs())
            with pytest.raises(EngineError, match=r"busy with other requests, and was for 0\.3 s"):
                sglang.score(requests, lanes_of(4))
        finally:
            server._patience = patience
            engine.loop.run_until_complete(
                engine.tokenizer_manager.continue_generation(_request("ContinueGenerationReqInput"))
            )
            engine.loop.run_until_complete(running[0])
        assert worst(sglang.score(requests, [BASE]).values, first) == 0.0, "nothing had moved"
        assert worst(sglang.score(requests, lanes_of(4)[:1]).values, first) > 20 * TOLERANCE


def _request(kind: str, **fields: Any) -> Any:
    from sglang.srt.managers import io_struct

    return getattr(io_struct, kind)(**fields)


def test_weights_that_another_run_has_moved_are_not_scored(loaded: Loaded, server: Server) -> None:
    model, tokenizer = loaded
    requests = requests_of(tokenizer)[:2]
    _, lora = engines(loaded, server, activated=False)
    with engine_of(model, server, Pattern("norm"), noise="binomial", inplace=True) as first:
        before = first.score(requests, [BASE]).values
        with engine_of(model, server, Pattern("norm"), noise="binomial", inplace=False) as second:
            assert worst(second.score(requests, [BASE]).values, before) < TOLERANCE, "it found the base weights"
            with pytest.raises(EngineError, match="not where this run left them"):
                first.score(requests, [BASE])
            with pytest.raises(EngineError, match="a run trains the weights of this SGLang"):
                lora.score(requests, [BASE])
        with pytest.warns(UserWarning, match="not where this run left them"):
            cast(WeightVariants, first._variants).close()
        assert worst(lora.score(requests, [BASE]).values, before) < TOLERANCE
        lora.reset()


def test_a_move_whose_answer_is_lost_can_be_taken_back(loaded: Loaded, server: Server) -> None:
    """As after a time-out: SGLang has moved, and the run does not know."""
    model, tokenizer = loaded
    requests = requests_of(tokenizer)[:2]
    with engine_of(model, server, Pattern("norm"), noise="binomial", inplace=True) as sglang:
        start = sglang.score(requests, [BASE]).values
        variants = cast(WeightVariants, sglang._variants)
        server.command("move", session=variants._session, moves=variants._moves, lane=[3, None, 1, EPS], terms=[])
        with pytest.raises(EngineError, match="not where this run left them"):
            sglang.score(requests, lanes_of(4))
        sglang.reset()
        assert worst(sglang.score(requests, [BASE]).values, start) == 0.0
        server.command("move", session=variants._session, moves=variants._moves, lane=[3, None, 1, EPS], terms=[])
    with engine_of(model, server, Pattern("norm"), noise="binomial", inplace=True) as again:
        assert worst(again.score(requests, [BASE]).values, start) == 0.0, "the end puts everything back, too"


def test_another_model_is_refused(loaded: Loaded, server: Server) -> None:
    model = deepcopy(loaded[0])
    with torch.no_grad():
        model.get_parameter("model.layers.3.mlp.up_proj.weight")[7, 7] += 1e-3
    with (
        pytest.raises(EngineError, match="another model"),
        engine_of(model, server, Full(), noise="binomial", inplace=True),
    ):
        pass
