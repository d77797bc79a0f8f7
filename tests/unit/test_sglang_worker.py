"""Commands to weights in another process, carried out on a model of Hugging Face's: its parameters lie where they say."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny import model as tiny_model
from tiny import save, tokenizer
from torch import nn
from transformers import PreTrainedModel

from twinpass.config.engines import SglangSettings
from twinpass.engine.sglang import launch
from twinpass.engine.sglang.inside.worker import answer, carry_out, lane_of
from twinpass.engine.subject import Subject
from twinpass.errors import EngineError, LatticeError
from twinpass.model.identity import hash_of
from twinpass.model.trainable import Full, Lora, Pattern, Trainable
from twinpass.perturb.lattice import Lattice
from twinpass.perturb.noise import ALGORITHM
from twinpass.reuse.auto import Auto

SESSION = "one"
LANE = [7, None, 1, 2.0**-10]


def begin(model: PreTrainedModel, trainable: Trainable | None = None, **changes: Any) -> dict[str, Any]:
    """What a client says; :class:`WeightVariants` says the same, to real SGLang in tests/engines."""
    chosen = (trainable or Full()).attach(model, 0).parameters
    quanta = Lattice(chosen, "binomial").quantum
    trained = {
        name: {"shape": list(tensor.shape), "tied": [], "block": None, "quantum": quanta[name]}
        for name, tensor in chosen.items()
    }
    shapes = [[name, list(tensor.shape)] for name, tensor in model.named_parameters()]
    whole = len(trained) == len(shapes)
    given = {"algorithm": ALGORITHM, "model": shapes, "trained": trained, "all": whole, "noise": "binomial"}
    return {"do": "begin", "session": SESSION, "perturbation": "inplace", **given, **changes}


class Worker:
    """A process of SGLang's, as far as weights go."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: nn.Module = model
        self.checkpoint = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        self.state, self.moves = SimpleNamespace(), 0

    def tell(self, command: dict[str, Any]) -> dict[str, Any]:
        found = answer(self.state, command, self.model, lambda: self.checkpoint)
        self.moves = found["moves"]
        return found

    def do(self, what: str, **arguments: Any) -> dict[str, Any]:
        return self.tell({"do": what, "session": SESSION, "moves": self.moves, **arguments})

    def stands_at_theta_0(self) -> bool:
        return all(torch.equal(tensor, self.checkpoint[name]) for name, tensor in self.model.named_parameters())


@pytest.fixture
def worker() -> Worker:
    return Worker(tiny_model())


def test_the_hash_is_the_embedded_engines(worker: Worker) -> None:
    assert worker.tell(begin(tiny_model()))["base"] == hash_of(tiny_model())


@pytest.mark.parametrize("perturbation", ["inplace", "tandem"])
def test_moves_resets_and_the_end(worker: Worker, perturbation: str) -> None:
    worker.tell(begin(tiny_model(), perturbation=perturbation))
    start = worker.do("digest")["digest"]
    worker.do("move", lane=LANE, terms=[])
    assert worker.do("digest")["digest"] != start
    worker.do("move", lane=None, terms=[])
    assert worker.do("digest")["digest"] == start
    worker.do("move", lane=None, terms=[[5, 1e-3, None]])
    assert worker.do("digest")["digest"] != start
    worker.do("reset")
    assert worker.do("digest")["digest"] == start
    worker.do("move", lane=LANE, terms=[[5, 1e-3, None]])
    worker.do("end")
    assert worker.stands_at_theta_0()


def test_a_client_that_went_away_leaves_nothing_behind(worker: Worker) -> None:
    worker.tell(begin(tiny_model()))
    worker.do("move", lane=LANE, terms=[[5, 1e-3, None]])
    worker.tell(begin(tiny_model(), Pattern("norm"), session="two"))
    with pytest.raises(EngineError, match="not where this run left them"):
        worker.do("where")
    worker.tell({"do": "end", "session": "two", "moves": worker.moves})
    assert worker.stands_at_theta_0()


def test_nobody_scores_weights_of_another_number(worker: Worker) -> None:
    worker.tell(begin(tiny_model()))
    worker.do("move", lane=LANE, terms=[])
    with pytest.raises(EngineError, match="not where this run left them"):
        worker.tell({"do": "where", "session": SESSION, "moves": 0})
    fresh = Worker(tiny_model())
    with pytest.raises(EngineError, match="started again"):
        fresh.do("where")


def test_after_a_move_that_failed_there_is_only_the_way_back(worker: Worker) -> None:
    """Half of it may have happened; asked again, it would happen twice."""
    worker.tell(begin(tiny_model()))
    start = worker.do("digest")["digest"]
    odd = [7, None, 1, 1.1e-9]  # not a whole number of quanta
    with pytest.raises(LatticeError):
        worker.do("move", lane=odd, terms=[[5, 1e-3, None]])
    with pytest.raises(EngineError, match="not where this run left them"):
        worker.do("move", lane=LANE, terms=[[5, 1e-3, None]])
    worker.do("reset")
    assert worker.do("digest")["digest"] == start


def test_adapters_are_not_scored_above_weights_that_move(worker: Worker) -> None:
    assert answer(worker.state, {"do": "untouched"}, worker.model, lambda: worker.checkpoint) == {}
    worker.tell(begin(tiny_model()))
    with pytest.raises(EngineError, match="a run trains the weights"):
        answer(worker.state, {"do": "untouched"}, worker.model, lambda: worker.checkpoint)


def change(name: str) -> Callable[[Worker], None]:
    def apply(worker: Worker) -> None:
        with torch.no_grad():
            worker.model.get_parameter(name).view(-1)[3] += 1e-4

    return apply


def copy_tied(worker: Worker) -> None:
    worker.model.lm_head.weight = nn.Parameter(worker.model.model.embed_tokens.weight.detach().clone())  # type: ignore[union-attr, operator]


def grow(worker: Worker) -> None:
    worker.model.register_parameter("router", nn.Parameter(torch.zeros(3)))


def forget(worker: Worker) -> None:
    worker.checkpoint.pop("model.norm.weight")


def shrink(worker: Worker) -> None:
    worker.checkpoint["model.norm.weight"] = worker.checkpoint["model.norm.weight"][:-1]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (change("model.layers.0.mlp.up_proj.weight"), r"up_proj.weight: what SGLang computes with is not"),
        (grow, r"1 parameters that are none of the model's \(router\)"),
        (forget, r"another model than the configuration's: model.norm.weight should be .* no such parameter"),
        (shrink, r"another model than the configuration's: model.norm.weight should be"),
    ],
)
def test_weights_that_are_not_as_they_should_be_are_refused(
    worker: Worker, fault: Callable[[Worker], None], words: str
) -> None:
    fault(worker)
    with pytest.raises(EngineError, match=words):
        worker.tell(begin(tiny_model()))
    assert not hasattr(worker.state, "twinpass_weights")


def test_a_copy_of_a_tied_parameter_is_refused(worker: Worker) -> None:
    command = begin(tiny_model(), Pattern("embed_tokens"))
    command["trained"]["model.embed_tokens.weight"]["tied"] = ["lm_head.weight"]
    copy_tied(worker)
    with pytest.raises(EngineError, match="is tied to other parameters"):
        worker.tell(command)


def test_other_noise_is_refused(worker: Worker) -> None:
    with pytest.raises(EngineError, match="install the same version"):
        worker.tell(begin(tiny_model(), algorithm="another/1"))


def test_lanes_travel_as_numbers() -> None:
    lane = lane_of(json.loads(json.dumps([2**63 - 1, 4, -1, 1e-3])))
    assert lane.probe is not None
    assert (lane.probe.seed, lane.probe.block, lane.sign, lane.eps) == (2**63 - 1, 4, -1, 1e-3)


class TestCarryOut:
    def told(
        self, do: str, *, idle: bool = True, flushed: bool = True, error: Exception | None = None
    ) -> dict[str, Any]:
        self.ran: list[str] = []

        def run(command: dict[str, Any]) -> dict[str, Any]:
            self.ran.append(command["do"])
            if error is not None:
                raise error
            return {"moves": 1}

        return carry_out(json.dumps({"do": do}), idle=lambda: idle, flush=lambda: flushed, run=run)

    def test_looks_neither_wait_nor_flush(self) -> None:
        for look in ("where", "digest", "check", "untouched"):
            assert self.told(look, idle=False, flushed=False) == {"moves": 1}

    def test_nothing_moves_while_requests_run(self) -> None:
        assert self.told("move", idle=False) == {"error": "SGLang is busy with other requests", "busy": True}
        assert self.ran == []
        assert self.told("where", idle=False) == {"moves": 1}, "a look disturbs nobody"

    def test_a_flush_that_is_refused_is_an_error(self) -> None:
        assert "refused to flush" in self.told("move", flushed=False)["error"]
        assert self.told("where", flushed=False) == {"moves": 1}

    def test_errors_are_told(self) -> None:
        assert self.told("move", error=EngineError("no")) == {"error": "no"}
        assert self.told("move", error=RuntimeError("odd")) == {"error": "RuntimeError: odd"}


@pytest.mark.parametrize("trusted", [False, True])
def test_sglang_runs_a_checkpoints_code_only_where_it_is_trusted(
    trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told so either way: SGLang's own default does not count."""
    told: dict[str, object] = {}

    def start(folder: str, arguments: Mapping[str, object]) -> None:
        told.update(arguments)
        raise EngineError("far enough")

    monkeypatch.setattr(launch, "InProcess", start)
    path = str(save(tmp_path / "model"))
    subject = Subject(tiny_model(), tokenizer(), Lora(), Auto(), path, "float32", trust_remote_code=trusted)
    with pytest.raises(EngineError, match="far enough"):
        launch.launch(subject, device="cpu", arguments={})
    assert told["trust_remote_code"] is trusted
    with pytest.raises(
        ValidationError, match=r"'trust_remote_code' is set by twinpass: use \[model\] trust_remote_code"
    ):
        SglangSettings(arguments={"trust_remote_code": True})
