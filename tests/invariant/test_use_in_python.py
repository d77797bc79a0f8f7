"""A run that was made in Python is used with the model that it was given, or finds it again."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import datasets
import pandas as pd
import pytest
import tiny
import torch
from architectures import GROUPED
from safetensors.torch import load_file
from trained import ROWS, by_hugging_face, logits
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

import twinpass
from twinpass.cli.main import main
from twinpass.errors import DataError, JournalError, ModelError
from twinpass.model.trainable import Activated
from twinpass.use.trained import _as_saved


def in_python(model: Any, tokenizer: Any, out: Path, trainable: Any, **more: Any) -> None:
    options: dict[str, Any] = {
        **more,
        "prompt": "Review: {text}",
        "suffix": " Sentiment:",
        "options": [" bad", " good"],
        "labels": ["no", "yes"],
    }
    rows = [{**row, "label": ["no", "yes"][row["label"]]} for row in tiny.rows(6)]
    optimizer = twinpass.Sgd(lr=0.3 if trainable.adapter else 0.03, steps=3, batch_size=4)
    twinpass.finetune(
        model, tokenizer, rows, rows, **options, trainable=trainable, optimizer=optimizer, out=out, keep="last"
    )


def test_a_run_made_in_python_is_given_its_model(tmp_path: Path) -> None:
    in_python(tiny.model(), tiny.tokenizer(), tmp_path / "run", twinpass.Lora(rank=2))
    with pytest.raises(ModelError, match=r"from objects: give them again.*they came from no folder or name"):
        twinpass.load(tmp_path / "run")
    trained = twinpass.load(tmp_path / "run", model=tiny.model(), tokenizer=tiny.tokenizer())
    (answer,) = trained.predict(ROWS[:1])
    assert set(answer.probabilities) == {"no", "yes"}
    text = by_hugging_face(trained.model, trained.tokenizer, "Review: dull Sentiment:")
    assert trained.generate(["Review: dull Sentiment:"], 5) == [text]
    assert trained.predict(ROWS[:1]) == [answer], "PEFT's model is another object than the engine's"


def test_a_run_made_in_python_finds_its_model_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, run = tiny.save(tmp_path / "model"), tmp_path / "run"
    in_python(*twinpass.load_model(str(folder)), run, twinpass.Lora(rank=2))
    model, tokenizer = twinpass.load_model(str(folder))
    given = twinpass.load(run, model=model, tokenizer=tokenizer).predict(ROWS)
    assert twinpass.load(run).predict(ROWS) == given
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path / "rows.jsonl")]) == 0
    said = [json.loads(line)["prediction"]["answer"] for line in capsys.readouterr().out.splitlines()]
    assert said == [answer.answer for answer in given]
    assert main(["export", str(run), "--format", "peft", "--out", str(tmp_path / "adapter"), "--json"]) == 0
    assert f"| base model | `{folder}` |" in (tmp_path / "adapter/README.md").read_text()
    words = folder / "tokenizer.json"
    kept = words.read_text()
    words.write_text(kept.replace('"film"', '"movie"'))
    with pytest.raises(ModelError, match=r"give them again.*as in .*model the tokenizer is another one"):
        twinpass.load(run)
    words.write_text(kept)
    with torch.no_grad():
        next(iter(model.parameters())).add_(1.0)
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"give them again.*model has other weights now"):
        twinpass.load(run)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match=r"give them again.*cannot be loaded: model.path: there is no folder"):
        twinpass.load(run)


def test_weights_under_another_configuration_are_warned_of(tmp_path: Path) -> None:
    """Positions that were scaled where a model was loaded are not, where its folder is loaded again; and it is no ground to go on."""
    folder, run = tiny.save(tmp_path / "model"), tmp_path / "run"
    model = AutoModelForCausalLM.from_pretrained(
        folder, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    )
    in_python(model, tiny.tokenizer(), run, twinpass.Lora(rank=2))
    expected = twinpass.load(run, model=model, tokenizer=tiny.tokenizer()).predict(ROWS)
    with pytest.warns(UserWarning, match=r'on other ground: rope_parameters was .*"factor": 4\.0.*, now'):
        assert twinpass.load(run).predict(ROWS) != expected
    plain, tokenizer = twinpass.load_model(str(folder))
    with pytest.raises(JournalError, match="the model's configuration is another one"):
        in_python(plain, tokenizer, run, twinpass.Lora(rank=2), resume=True)


TURNS = "{% for each in messages %}{{ each.role }} : {{ each.content }} \n {% endfor %}"
HEARD = TURNS + "{% if add_generation_prompt %}assistant : {% endif %}"


@pytest.mark.parametrize("rewarded", [False, True], ids=["texts", "rewards"])
def test_conversations_are_written_as_in_training_or_not_at_all(rewarded: bool, tmp_path: Path) -> None:
    """A tokenizer that was given may have another chat template than that of its folder."""
    folder = tiny.save(tmp_path / "model")
    model, tokenizer = twinpass.load_model(str(folder))
    tokenizer.chat_template = f"Review: {HEARD}"
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = HEARD
    talk: list[dict[str, str]] = [{"role": "a", "content": "fine film"}]
    answer = {"role": "assistant", "content": "good"}
    rows: Any = [{"prompt": talk}] * 2 if rewarded else [{"messages": [*talk, answer]}] * 2
    task: Any = {}
    if rewarded:
        generation = twinpass.Generation(max_tokens=4)
        task = {"rewards": [lambda completions, **_: [0.0] * len(completions)], "generation": generation}
    twinpass.finetune(model, tokenizer, rows, [], out=tmp_path / "run", max_seconds=1e-3, **task)
    trained = twinpass.load(tmp_path / "run", model=twinpass.load_model(str(folder))[0], tokenizer=tokenizer)
    assert trained.tokenizer is tokenizer
    with pytest.raises(ModelError, match=r"give them again.*as in .*model the chat template is another one"):
        twinpass.load(tmp_path / "run")
    tokenizer.save_pretrained(folder)
    assert twinpass.load(tmp_path / "run").tokenizer.chat_template == HEARD


def test_rows_are_answered_in_every_form_that_training_takes(tmp_path: Path) -> None:
    in_python(tiny.model(), tiny.tokenizer(), tmp_path / "run", twinpass.Lora(rank=2))
    trained = twinpass.load(tmp_path / "run", model=tiny.model(), tokenizer=tiny.tokenizer())
    expected = [answer.probabilities["yes"] for answer in trained.predict(ROWS)]
    assert len(set(expected)) == len(ROWS)
    for rows in (pd.DataFrame(ROWS), datasets.Dataset.from_list(ROWS), (row for row in ROWS)):
        assert [answer.probabilities["yes"] for answer in trained.predict(rows)] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(DataError, match="rows: expected rows such as a list of dictionaries or a Dataset, got a dict"):
        trained.predict(ROWS[0])
    with pytest.raises(ModelError, match="expected a causal language model of transformers, got the text 'tiny'"):
        twinpass.load(tmp_path / "run", model=cast(Any, "tiny"), tokenizer=tiny.tokenizer())
    with pytest.raises(DataError, match=r"prompts: expected a list of texts, got one text; write \['Review: dull'\]"):
        trained.generate("Review: dull")


@pytest.mark.parametrize("trainable", [twinpass.Lora(rank=2), twinpass.Activated(rank=2)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_of_texts_are_shortened_as_in_training(trainable: Any, side: str, tmp_path: Path) -> None:
    """Rows that are longer than the model's window could be trained on, and not written for."""
    model = tiny.model()
    window, vocabulary = model.config.max_position_embeddings, model.config.vocab_size
    tokenizer = tiny.tokenizer(*(f"word{i}" for i in range(vocabulary - len(tiny.WORDS))))
    rows = [{"text": f"{'dull ' * window}fine {word}", "answer": "good"} for word in ("film", "story")]
    options: dict[str, Any] = {"prompt": "Review: {text}", "suffix": " Sentiment:", "completion": " {answer}"}
    options |= {"truncate": side, "end": False, "trainable": trainable, "optimizer": twinpass.AdamW(steps=1)}
    twinpass.finetune(model, tokenizer, rows, [], out=tmp_path / "run", keep="last", **options)
    trained = twinpass.load(tmp_path / "run", model=tiny.model(), tokenizer=tokenizer)
    words = f"Review: {rows[0]['text']}".split()
    for most, room in ((6, 6), (window, window // 2)):
        kept = words[len(words) - (window - room) :] if side == "left" else words[: window - room]
        (text,) = trained.write(rows[:1], trained.sampling(max_tokens=most))
        assert [text] == trained.generate([" ".join(kept) + " Sentiment:"], max_tokens=most)
        assert len(text.split()) == room
    with pytest.raises(DataError, match="no more than the model's window"):
        trained.generate([" ".join(words)])


def test_an_adapter_sits_on_the_modules_that_it_was_saved_for() -> None:
    """Whatever "outputs" stood for when it was trained."""
    again = _as_saved(Activated(targets="outputs"), {"target_modules": ["out_proj", "fc2"]})
    assert again == Activated(targets=("out_proj", "fc2"))


def test_a_model_that_was_trained_itself_needs_nothing_else(tmp_path: Path) -> None:
    run, model = tmp_path / "run", tiny.model()
    in_python(model, tiny.tokenizer(), run, twinpass.Full())
    trained = twinpass.load(run)
    assert torch.equal(logits(trained.model), logits(model)), "it was trained in place"
    assert trained.tokenizer("a fine film")["input_ids"] == tiny.tokenizer()("a fine film")["input_ids"]


class Halved(twinpass.Spsa):
    """An estimator that no package offers: a replay cannot find it, and has no need of it."""

    def estimate(self, *given: Any, **named: Any) -> Any:
        found = super().estimate(*given, **named)
        return replace(found, gradients=tuple(g / 2 for g in found.gradients))


def test_a_run_by_an_estimator_of_ones_own_is_replayed_and_used(tmp_path: Path) -> None:
    """Its updates are in the journal. They are not those that it was derived from would have made."""
    folder = tiny.save(tmp_path / "model")
    options: dict[str, Any] = {"prompt": "Review: {text}", "suffix": " Sentiment:", "options": [" bad", " good"]}
    options |= {"optimizer": twinpass.Sgd(lr=0.1, steps=4, batch_size=4), "keep": "last"}
    for name, estimator in (("run", Halved(probes=2)), ("plain", twinpass.Spsa(probes=2))):
        model, tokenizer = twinpass.load_model(str(folder))
        twinpass.finetune(model, tokenizer, tiny.rows(8), out=tmp_path / name, estimator=estimator, **options)
    tensors = {name: load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("run", "plain")}
    assert main(["replay", str(tmp_path / "run"), "--out", str(tmp_path / "again"), "--json"]) == 0
    again = load_file(tmp_path / "again/adapter/adapter_model.safetensors")
    assert again.keys() == tensors["run"].keys()
    assert all(torch.equal(again[name], own) for name, own in tensors["run"].items())
    assert not all(torch.equal(own, tensors["plain"][name]) for name, own in tensors["run"].items())
    assert len(twinpass.load(tmp_path / "run").predict(ROWS)) == len(ROWS)
    assert main(["export", str(tmp_path / "run"), "--format", "peft", "--out", str(tmp_path / "adapter")]) == 0


def test_experts_that_were_trained_in_place_are_read(tmp_path: Path) -> None:
    """What lanes cannot run together is no obstacle to asking what was learned."""
    config = MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)
    model: Any = MixtralForCausalLM(config).train(False)
    base = deepcopy(model)
    in_python(model, tiny.tokenizer(), tmp_path, twinpass.Full(), estimator=twinpass.Spsa(), perturbation="inplace")
    trained = twinpass.load(tmp_path, model=base, tokenizer=tiny.tokenizer())
    assert torch.equal(trained.model.model.layers[0].mlp.experts.down_proj, model.model.layers[0].mlp.experts.down_proj)
    (answer,) = trained.predict(tiny.rows(1))
    assert set(answer.probabilities) == {"no", "yes"}
