"""The doctor says what is so: what it finds is what runs do, and it leaves the model as it was."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from architectures import bits
from transformers import LongcatFlashConfig, LongcatFlashForCausalLM

from twinpass.cli.main import main
from twinpass.config.schema import SECTIONS
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.errors import DataError
from twinpass.estimate.base import Estimator
from twinpass.estimate.spsa import Spsa
from twinpass.model.trainable import Activated
from twinpass.task.example import Example
from twinpass.task.limits import Limits
from twinpass.use.doctor import diagnose
from twinpass.use.probe import SUFFIX, MadeUp, timed
from twinpass.use.tiles import share_of_float32


def test_a_model_that_packs() -> None:
    model = tiny.model()
    before = bits(model)
    told: list[str] = []
    found = diagnose("tiny", model, tokens=9, seconds=5.0, told=told.append)
    assert all(torch.equal(before[name], tensor) for name, tensor in bits(model).items())
    assert found.packing.packs
    assert found.packing.off is not None
    assert found.packing.allowed is not None
    assert 0 <= found.packing.off < 1e-10 < found.packing.allowed
    assert found.weights_bytes == 4 * sum(each.numel() for each in model.parameters())
    assert found.kv_bytes_per_1000_tokens == 1000 * 2 * 2 * 2 * 8 * 4, "layers, keys and values, heads, size, float32"
    assert sorted(told) == sorted(["packing", *SECTIONS["trainable"].kinds])
    assert list(found.trainables) == list(SECTIONS["trainable"].kinds)
    for kind, own in found.trainables.items():
        assert own.works, own.reason
        assert set(own.estimators) == set(SECTIONS["estimator"].kinds)
        assert set(own.policies) == set(SECTIONS["reuse"].kinds)
        assert (own.step is None) == (kind in ("layers", "pattern"))
    learners = {
        kind: {name for name, why in own.estimators.items() if not why} for kind, own in found.trainables.items()
    }
    along = {"spsa", "one_sided", "line", "gauss_newton"}
    assert learners["lora"] == learners["activated"] == learners["layers"] == {*along, "jvp", "backprop"}
    assert learners["pattern"] == {*along, "jvp"}
    assert learners["full"] == {*along, "jvp", "feedback"}
    assert learners["projections"] == {*along, "jvp", "feedback", "backprop"}
    steps = [own.step for kind, own in found.trainables.items() if kind in ("full", "projections")]
    assert all(step is not None and step.estimator == "feedback" for step in steps)
    assert learners["informed"] == along
    assert "o_proj and down_proj" in found.trainables["lora"].estimators["feedback"]
    policies = {kind: {name for name, why in own.policies.items() if not why} for kind, own in found.trainables.items()}
    assert policies["full"] == policies["lora"] == {"auto", "exact", "transported", "frozen", "debiased"}
    assert policies["layers"] == policies["pattern"] == {"auto", "exact", "invariant"}
    assert policies["activated"] == policies["informed"] == {"auto", "exact", "activated"}
    lora = found.trainables["lora"].step
    assert lora is not None
    assert (lora.rows, lora.tokens, lora.estimator) == (16, 9, "backprop")
    assert 1 <= lora.measured_rows <= 16
    assert lora.most_seconds >= lora.seconds == lora.first_seconds > 0, "nothing is kept from step to step"


@pytest.mark.parametrize(("asked", "tokens"), [(1, 5), (62, 62), (63, 63), (64, 63)])
def test_prompts_that_are_timed_leave_room_for_an_answer_in_the_window(asked: int, tokens: int) -> None:
    """They are as long as is asked for, as far as a run could train on such rows; the shortest have a token before the suffix."""
    model = tiny.model("gpt2")
    found = diagnose("tiny", model, tokens=asked, seconds=0.01)
    assert {own.step.tokens for own in found.trainables.values() if own.step is not None} == {tokens}
    row = Example(tuple([5] * tokens), ((0,), (1,)), 0, tokens - SUFFIX)
    assert Limits(found.window).applied(row, tiny.tokenizer()) == row
    if tokens < asked:
        with pytest.raises(DataError, match="65 tokens, but the model's window holds 64"):
            Limits(found.window).applied(replace(row, prompt=(*row.prompt, 5)), tiny.tokenizer())


@pytest.mark.parametrize("tiles", [True, False])
def test_products_in_bfloat16_are_timed_where_the_processor_has_tiles(
    tiles: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("twinpass.use.tiles.multiplies_tiles", lambda: tiles)
    share = share_of_float32(tiny.model())
    assert (share is not None and share > 0) == tiles
    assert share_of_float32(tiny.model().bfloat16()) is None
    assert main(["doctor", str(tiny.save(tmp_path)), "--seconds", "0"]) == 0
    assert ('[engine] compute_dtype = "bfloat16"' in capsys.readouterr().out) == tiles


class Rows(MadeUp):
    """Steps that take 1 s, and 2 s a row the first time and 1 s later, by a clock of their own."""

    def __init__(self) -> None:
        super().__init__(TorchEngine(tiny.model(), Activated()), Activated(), 97)
        self.now, self.seen, self.disturbed = 0.0, dict[tuple[int, ...], int](), 1.0

    def step(self, estimator: Estimator, examples: Sequence[Example]) -> None:
        known = self.seen.get(examples[0].prompt, 0)
        self.seen[examples[0].prompt] = known + 1
        self.now += (1.0 + (1.0 if known else 2.0) * len(examples)) * (self.disturbed if known == 1 else 1.0)


@pytest.mark.parametrize(("limit", "measured"), [(1e9, 16), (40.0, 4)])
def test_a_step_is_extrapolated_by_the_line_through_what_was_measured(limit: float, measured: int) -> None:
    rows = Rows()
    found = timed(rows, "spsa", Spsa(), 9, limit, lambda: rows.now)
    assert (found.measured_rows, found.rows) == (measured, 16)
    assert found.first_seconds == pytest.approx(1 + 2 * 16)
    assert found.seconds == found.most_seconds == pytest.approx(1 + 16)


def test_a_step_that_was_disturbed_counts_as_the_most_that_it_takes() -> None:
    rows = Rows()
    rows.disturbed = 1.5
    found = timed(rows, "spsa", Spsa(), 9, 1e9, lambda: rows.now)
    assert found.seconds == pytest.approx(1 + 16)
    assert found.most_seconds == pytest.approx(1.5 * (1 + 16))


def test_a_model_that_does_not_pack() -> None:
    found = diagnose("tiny", tiny.model("bloom"), seconds=0.0)
    assert (found.packing.packs, found.packing.off) == (False, None)
    assert found.packing.reason == "its attention does not go through the attention registry"
    assert found.kv_bytes_per_1000_tokens == 0
    assert found.trainables["full"].works
    assert found.trainables["full"].policies == {}, "nothing is reused"
    assert "jvp cannot be taken" in found.trainables["full"].estimators["jvp"]
    assert found.trainables["lora"].works, "on query_key_value and dense"
    informed = found.trainables["informed"]
    assert not informed.works
    assert "what enters modules is seen in packed passes" in informed.reason


def test_a_model_whose_layers_are_not_counted_as_usual_is_told_what_trains() -> None:
    """Each of LongCat's layers is two by its configuration; the doctor ended in what one kind of weights says of that."""
    sizes: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 4}
    latent: dict[str, Any] = {
        "q_lora_rank": 12,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "head_dim": 4,
    }
    own: dict[str, Any] = {
        "v_head_dim": 8,
        "ffn_hidden_size": 48,
        "expert_ffn_hidden_size": 16,
        "n_routed_experts": 4,
        "moe_topk": 2,
    }
    model = LongcatFlashForCausalLM(LongcatFlashConfig(**sizes, **latent, **own, zero_expert_num=2)).train(False)
    found = diagnose("tiny", model, seconds=0.0).trainables
    assert found["pattern"].works
    assert "has no list of 4 decoder layers" in found["layers"].reason


def test_a_model_whose_losses_are_no_numbers_is_left_as_it_was() -> None:
    model = tiny.model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e38)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = diagnose("tiny", model, seconds=0.0)
    assert all("no finite numbers" in own.reason or own.works for own in found.trainables.values())
    assert any(not own.works for own in found.trainables.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tiny.save(tmp_path / "model", "gpt2"))
    capsys.readouterr()
    assert main(["doctor", model, "--json", "--seconds", "0"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert not captured.err
    assert found["packing"]["packs"] is True
    assert found["trainables"]["informed"]["works"] is True
    assert main(["doctor", model, "--seconds", "0"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "packs yes: in float64 its scores are off by" in text
    assert "learners spsa, one_sided, jvp, line, gauss_newton not backprop:" in text
    assert main(["doctor", str(tiny.save(tmp_path / "other", "bloom")), "--seconds", "0"]) == 0
    assert "informed no: what enters modules is seen" in " ".join(capsys.readouterr().out.split())
    for wrong in (["--seconds", "11"], ["--tokens", "0"]):
        assert main(["doctor", model, *wrong, "--json"]) == 2
        assert wrong[0] in json.loads(capsys.readouterr().out)["error"]
    assert main(["doctor", str(tmp_path / "none"), "--json"]) == 2
    assert "there is no folder" in json.loads(capsys.readouterr().out)["error"]
