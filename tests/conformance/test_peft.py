"""The real PEFT loads what was trained, to the same logits."""

from pathlib import Path

import pytest
import tiny
import torch
from peft import PeftModel

from twinpass.core import BASE, Probe, Request, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.embedded.trainable import Lora

TARGETS = {"llama": ("q_proj", "v_proj", "down_proj"), "gpt2": ("c_attn", "c_proj"), "opt": ("q_proj", "fc1")}


@pytest.mark.parametrize("name", TARGETS)
def test_peft_gives_the_same_scores(name: str, tmp_path: Path) -> None:
    engine = TorchEngine(tiny.model(name), Lora(rank=4, alpha=8.0, targets=TARGETS[name]), seed=5)
    request = Request((1, 7, 3, 9), (2, 4, 6))
    before = engine.score([request], [BASE]).values[0][0]
    engine.update([Term(Probe(k).seed, 0.05) for k in range(3)])
    trained = engine.score([request], [BASE]).values[0][0]
    assert abs(trained - before).max() > 1e-2
    engine.save(tmp_path)
    loaded = PeftModel.from_pretrained(tiny.model(name), str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        logits = loaded(input_ids=torch.tensor([request.prompt + request.completion])).logits[0]
    logprobs = torch.log_softmax(logits[3:-1], -1)[range(3), request.completion]
    assert trained == pytest.approx(logprobs.double().numpy(), abs=1e-4)
