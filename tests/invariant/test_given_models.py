"""Models as people hand them over to ``finetune``: taken as they are, or refused with what to give, and never left half changed."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from architectures import build
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from trained import ROWS
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification, LlamaModel

import twinpass
from twinpass.cli.main import main
from twinpass.config.finetuned import origin
from twinpass.errors import ConfigError, ModelError

TASK: Any = {"prompt": "Review: {text}", "suffix": " Sentiment:", "options": [" bad", " good"]}
SHORT = twinpass.AdamW(lr=0.03, steps=2, batch_size=4)


def adapted() -> Any:
    return get_peft_model(tiny.model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))


def with_an_adapter_inside() -> Any:
    model: Any = tiny.model()
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    return model


def headed(kind: Any) -> Any:
    """A model of another class on the same decoder."""
    return kind(tiny.model().config)


def compiled() -> Any:
    model = tiny.model()
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (adapted, r"PeftModelForCausalLM holds adapters of PEFT.*merge_and_unload"),
        (with_an_adapter_inside, r"LlamaForCausalLM holds adapters of PEFT"),
        (lambda: "my-model", r"got the text 'my-model'; give what AutoModelForCausalLM\.from_pretrained"),
        (lambda: torch.nn.Linear(2, 2), "got a Linear"),
        (
            lambda: torch.compile(tiny.model(), backend="eager"),
            "compiled by torch.compile.* give the model as it was before",
        ),
        (compiled, "compiled by torch.compile"),
        (
            lambda: headed(LlamaModel),
            "LlamaModel does not write text from left to right; load .* with AutoModelForCausalLM",
        ),
        (
            lambda: headed(LlamaForSequenceClassification),
            "LlamaForSequenceClassification does not write text",
        ),
    ],
)
def test_what_is_no_language_model_by_itself_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        twinpass.finetune(make(), tiny.tokenizer(), tiny.rows(8), **TASK, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "found"),
    [("", ""), ("org/model", "org/model"), ("folder", "{}/folder"), ("a.gguf", "{}/a.gguf"), ("b.gguf", "b.gguf")],
)
def test_what_lies_here_is_found_from_elsewhere_and_a_name_on_the_hub_stays(
    name: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.gguf").touch()
    monkeypatch.chdir(tmp_path)
    model = tiny.model()
    model.name_or_path = name
    assert origin(model, (3,)) == {"model": found.format(tmp_path), "dtype": "float32", "invocation": [3]}


def test_one_text_is_no_list_of_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"options: expected a list, got ' good'; write \[...\] around it"):
        twinpass.finetune(
            tiny.model(), tiny.tokenizer(), tiny.rows(8), prompt="{text}", options=" good", out=tmp_path / "run"
        )


def test_arguments_of_other_trainers_say_where_they_go(tmp_path: Path) -> None:
    others: Any = {"train_dataset": [], "eval_dataset": [], "num_train_epochs": 3, "output_dir": "a"}
    with pytest.raises(ConfigError) as refused:
        twinpass.finetune(tiny.model(), tiny.tokenizer(), out=tmp_path / "run", **others)
    places = ["held_out=rows", "the optimizer, which counts steps", "out=FOLDER", "train=rows"]
    assert all(place in problem for place, problem in zip(places, refused.value.problems, strict=True))


def test_adapters_that_were_merged_are_a_part_of_the_model(tmp_path: Path) -> None:
    merged = adapted().merge_and_unload()
    summary = twinpass.finetune(
        merged, tiny.tokenizer(), tiny.rows(8), tiny.rows(4), **TASK, optimizer=SHORT, out=tmp_path / "run"
    )
    assert summary["steps"] == 2


def test_a_call_that_is_refused_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    """That feedback is not for these adapters shows once an engine was started, whose weights lie in another order."""
    model = tiny.model()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with pytest.raises(ModelError):
        twinpass.finetune(
            model,
            tiny.tokenizer(),
            tiny.rows(8),
            **TASK,
            trainable=twinpass.Lora(rank=2),
            estimator=twinpass.Feedback(),
            out=tmp_path / "run",
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())
    assert {tensor.layout for tensor in model.parameters()} == {torch.strided}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_taken_whatever_was_set_around_the_call(mode: Any, tmp_path: Path) -> None:
    model, found = tiny.model(), []
    for name, around in (("plain", torch.enable_grad), ("run", mode)):
        with around():
            twinpass.finetune(
                model, tiny.tokenizer(), tiny.rows(8), tiny.rows(4), **TASK, optimizer=SHORT, out=tmp_path / name
            )
        found.append(load_file(tmp_path / name / "adapter/adapter_model.safetensors"))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())
    assert not any(tensor.is_inference() for tensor in model.parameters())


def test_a_run_of_a_model_in_float16_is_used_from_its_folder(tmp_path: Path) -> None:
    """As transformers loads a checkpoint in float16, where nothing is said of it."""
    folder, run = tmp_path / "model", tmp_path / "run"
    build("llama", torch.float16).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype is torch.float16
    twinpass.finetune(
        model, tiny.tokenizer(), tiny.rows(8), tiny.rows(4), **TASK, optimizer=SHORT, out=run, keep="last"
    )
    found = twinpass.load(run)
    assert found.engine.model.dtype is torch.float16
    assert found.predict(ROWS) == twinpass.load(run, model=model, tokenizer=tiny.tokenizer()).predict(ROWS)
    assert main(["export", str(run), "--format", "peft", "--out", str(tmp_path / "adapter")]) == 0
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)
