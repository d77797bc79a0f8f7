"""What a run leaves behind elsewhere: a model, an adapter for PEFT, a folder for llama.cpp, a model card."""

import hashlib
import json
import os
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from trained import logits, train

import twinpass
from twinpass.cli.main import main
from twinpass.model.trainable import Full
from twinpass.report.interval import wilson
from twinpass.use.card import BUNDLED_ID, _facts, base_name, card
from twinpass.use.settings import settings_of


@pytest.mark.parametrize(("kind", "model"), [("lora", "llama"), ("lora", "gpt2"), ("full", "llama")])
def test_an_exported_model_is_a_model_of_its_own(kind: str, model: str, tmp_path: Path) -> None:
    sections: dict[str, Any] = {"use": {"model": model}}
    if model == "gpt2":
        sections["trainable"] = {"kind": "lora", "rank": 2, "targets": ["c_attn", "c_fc"]}
    run = train(tmp_path, kind, **sections)
    out = tmp_path / "exported"
    merge = ["--merge"] if kind == "lora" else []
    assert main(["export", str(run), "--format", "hf", "--out", str(out), *merge, "--json"]) == 0
    exported, tokenizer = twinpass.load_model(str(out))
    torch.testing.assert_close(logits(exported), logits(twinpass.load(run).model), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(exported), logits(twinpass.load_model(str(tmp_path / "model"))[0]), atol=1e-3)
    assert tokenizer("a fine film")["input_ids"] == tiny.tokenizer()("a fine film")["input_ids"]
    again = ["eval", str(tmp_path / "config.toml"), "--set", f"model.path={out}", "--json"]
    assert main(again) == 0, "it can be model.path again"


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_folder_for_llama_cpp_has_what_its_converter_reads(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import gguf

    run, out = train(tmp_path, kind), tmp_path / "exported"
    (tmp_path / "model/spiece.model").write_bytes(b"of SentencePiece")
    capsys.readouterr()
    assert main(["export", str(run), "--format", "gguf-ready", "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"folder": str(out), "format": "gguf-ready", "merged": kind == "lora"}
    exported, _ = twinpass.load_model(str(out))
    torch.testing.assert_close(logits(exported), logits(twinpass.load(run).model), atol=1e-5, rtol=1e-5)
    assert (out / "spiece.model").read_bytes() == b"of SentencePiece"
    assert (out / "tokenizer.json").is_file()
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name in load_file(out / "model.safetensors"):
        assert names.get_name(name, try_suffixes=(".weight",)) is not None, name
    assert "convert_hf_to_gguf.py THIS_FOLDER" in (out / "README.md").read_text()


def test_a_tokenizer_of_more_tokens_than_the_model_makes_no_gguf(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"more{i}" for i in range(100)])
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.warns(UserWarning, match="on other ground: the tokenizer is another one"):
        assert main(["export", str(run), "--format", "gguf-ready", "--out", str(tmp_path / "exported"), "--json"]) == 2
    assert (
        "the tokenizer has 113 tokens and the model 97" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    )
    assert not list(tmp_path.glob("*exported*"))


@pytest.mark.parametrize("kind", ["lora", "activated"])
def test_an_exported_adapter_is_loaded_by_peft(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    run, out = train(tmp_path, kind), tmp_path / "exported"
    assert main(["export", str(run), "--format", "peft", "--out", str(out), "--json"]) == 0
    base, _ = twinpass.load_model(str(tmp_path / "model"))
    assert torch.equal(logits(PeftModel.from_pretrained(base, str(out))), logits(twinpass.load(run).model))
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tmp_path / "model")
    assert (out / "tokenizer.json").is_file()
    tokens, text = twinpass.load(run).engine.invocation, (out / "README.md").read_text()
    assert (f"tokens {list(tokens)}, in a prompt" in text) == ("| acts from |" in text) == (kind == "activated")


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_whoever_may_read_files_of_this_user_may_read_weights(mask: int, tmp_path: Path) -> None:
    """safetensors 0.8 leaves them to their owner alone, and a server under another user said that there was no model."""
    before = os.umask(mask)
    try:
        runs = [train(tmp_path / kind, kind) for kind in ("lora", "full", "informed")]
        assert main(["export", str(runs[0]), "--format", "hf", "--merge", "--out", str(tmp_path / "hf")]) == 0
        assert main(["export", str(runs[2]), "--format", "peft", "--out", str(tmp_path / "peft")]) == 0
        given: dict[str, Any] = {"prompt": "Review: {text}\n", "suffix": "Sentiment:", "options": [" bad", " good"]}
        rows, out = tiny.rows(6), tmp_path / "made"
        twinpass.finetune(
            tiny.model(), tiny.tokenizer(), rows, [], **given, trainable=Full(), max_seconds=1e-3, out=out
        )
    finally:
        os.umask(before)
    weights = [
        path for top in (*runs, *map(tmp_path.joinpath, ("hf", "peft", "made"))) for path in top.rglob("*.safetensors")
    ]
    assert len(weights) >= 7
    assert {oct(path.stat().st_mode & 0o777) for path in weights} == {oct(0o666 & ~mask)}


def test_a_model_card_says_what_the_run_measured(tmp_path: Path) -> None:
    run, out = train(tmp_path), tmp_path / "exported"
    assert main(["export", str(run), "--format", "peft", "--out", str(out), "--json"]) == 0
    text, summary = (out / "README.md").read_text(), json.loads((run / "summary.json").read_text())
    digest = hashlib.sha256((tmp_path / "train.jsonl").read_bytes()).hexdigest()
    low, high = wilson(summary["final_metric"], 6)
    for fact in (
        digest,
        f"{summary['final_metric']:.1%} on 6 rows (95% {low:.1%} to {high:.1%})",
        f"the base model {summary['base_metric']:.1%}",
        f"| hit rate | {summary['hit_rate']:.1%} |",
        "| seed | 3 |",
        f"| base model | `{tmp_path}/model` |",
    ):
        assert fact in text
    made = tomllib.loads(text.partition("```toml\n")[2].partition("```")[0])
    given = tomllib.loads((run / "config.toml").read_text())
    assert (made["task"].pop("train"), made["task"].pop("eval"), made["run"].pop("out")) == (
        *("train.jsonl", "eval.jsonl"),
        "run",
    )
    for section, key in (("task", "train"), ("task", "eval"), ("run", "out")):
        del given[section][key]
    assert made == given
    assert text.count(str(tmp_path)) == text.count(f"{tmp_path}/model"), "no folder of ours but the base model's"
    assert base_name("smollm2") == BUNDLED_ID == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_model_card_s_front_matter_is_one_that_the_hub_takes(tmp_path: Path) -> None:
    """It refuses a base model that is no id of its own: a folder, or none."""
    run, rows = train(tmp_path), tiny.rows(6)
    settings = settings_of(run)
    for path, named in {settings.path: None, "smollm2": BUNDLED_ID, "owner/name": "owner/name", "gpt2": "gpt2"}.items():
        text = card(run, replace(settings, path=path), "peft", merge=False, step=None)
        found: Any = ModelCard(text).data
        assert (found.base_model, found.library_name, found.tags) == (named, "peft", ["twinpass", "mezo"])
    options: dict[str, Any] = {"prompt": "Review: {text}\n", "suffix": "Sentiment:", "options": [" bad", " good"]}
    made, out = tmp_path / "made", tmp_path / "exported"
    twinpass.finetune(tiny.model(), tiny.tokenizer(), rows, [], **options, trainable=Full(), max_seconds=1e-3, out=made)
    assert main(["export", str(made), "--format", "hf", "--out", str(out), "--json"]) == 0
    text = (out / "README.md").read_text()
    made_up: Any = ModelCard(text).data
    assert made_up.base_model is None
    assert "| base model | known to Python only |" in text


def test_a_model_card_names_all_sources(tmp_path: Path) -> None:
    run = train(tmp_path)
    text = (run / "config.toml").read_text()
    more = tmp_path / "more.jsonl"
    more.write_text("{}\n")
    given = f'train = "{tmp_path}/train.jsonl"'
    assert given in text
    (run / "config.toml").write_text(text.replace(given, f'train = ["{tmp_path}/train.jsonl", "{more}"]'))
    values = tomllib.loads((run / "config.toml").read_text())
    facts = dict(_facts(run, values, 0)[1:3])
    assert len(_facts(run, values, 0)) == 5
    assert facts["train rows"].startswith("`more.jsonl`, sha256")


@pytest.mark.parametrize("kind", ["activated", "informed"])
def test_an_activated_adapter_merged_all_the_same_says_what_comes_of_it(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = train(tmp_path, kind), tmp_path / "exported"
    capsys.readouterr()
    assert main(["export", str(run), "--format", "hf", "--merge", "--everywhere", "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])["held_out"]
    base, exported = (twinpass.load_model(str(path))[0] for path in (tmp_path / "model", out))
    tensors = load_file(run / "adapter/adapter_model.safetensors")
    setup = json.loads((run / "adapter/adapter_config.json").read_text())
    for name in (name for name in tensors if "lora_A" in name):
        change = setup["lora_alpha"] / setup["r"] * tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        path = name.removeprefix("base_model.model.").replace(".lora_A", "")
        torch.testing.assert_close(exported.get_parameter(path), base.get_parameter(path) + change)
    for given, key in ((str(run), "adapter"), (str(tmp_path / "config.toml"), "merged")):
        more = ["--set", f"model.path={out}"] if key == "merged" else []
        assert main(["eval", given, *more, "--json"]) == 0
        measured = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert measured["measures"]["accuracy"] == said[key]
    low, high = said["merged"]["low"], said["merged"]["high"]
    row = f"| held-out accuracy, acting on all tokens | {said['merged']['value']:.1%} (95% {low:.1%} to {high:.1%}) |"
    assert row in (out / "README.md").read_text()


def test_rows_that_only_python_knows_are_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.config(tmp_path)
    model, tokenizer = twinpass.load_model(str(tmp_path / "model"))
    rows: Any = tiny.rows(6)
    options: Any = {"prompt": "Review: {text}\n", "suffix": "Sentiment:", "options": [" bad", " good"]}
    trainable = twinpass.Activated(rank=2)
    twinpass.finetune(
        model, tokenizer, rows, rows, out=tmp_path / "run", trainable=trainable, max_seconds=1e-3, **options
    )
    out = tmp_path / "exported"
    capsys.readouterr()
    arguments = ["--format", "hf", "--merge", "--everywhere", "--out", str(out), "--json"]
    assert main(["export", str(tmp_path / "run"), *arguments]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["held_out"] == {}
    assert "| acting on all tokens | not measured: only Python knows" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("lora", ["--format", "hf", "--merge", "--everywhere"], "--everywhere is for an activated adapter"),
        ("activated", ["--format", "peft", "--everywhere"], "--everywhere is for an activated adapter"),
        ("activated", ["--format", "hf", "--merge"], "it cannot be merged as it was trained. Use"),
        ("activated", ["--format", "gguf-ready"], "add --everywhere to merge it all the same"),
        ("lora", ["--format", "hf"], "or --merge"),
        ("lora", ["--format", "peft", "--merge"], "use --format hf"),
        ("full", ["--format", "peft"], "use --format hf"),
        ("full", ["--format", "hf", "--merge"], "leave --merge out"),
    ],
)
def test_what_cannot_be_exported(
    kind: str, arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exported"
    assert main(["export", str(train(tmp_path, kind)), *arguments, "--out", str(out), "--json"]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.glob("*exported*"))
