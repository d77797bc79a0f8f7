"""What a run leaves behind is used: it answers and writes as the trained model does."""

import hashlib
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

import twinpass
from twinpass.cli.main import main
from twinpass.cli.train import LEARNED_NOTHING
from twinpass.errors import DataError, JournalError, ModelError
from twinpass.report.interval import wilson
from twinpass.report.written import normalised, token_f1
from twinpass.train.journal import read
from twinpass.use.card import _facts, base_name

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"trainable": {"kind": "lora", "rank": 2}},
    "activated": {"trainable": {"kind": "activated", "rank": 2}},
    "informed": {"trainable": {"kind": "informed", "layers": 1}},
    "full": {"trainable": {"kind": "full"}},
}
RATES = {"lora": 0.3, "activated": 0.3, "informed": 1.0, "full": 0.03}
ROWS = [{"text": "a fine film"}, {"text": "dull"}, {"text": "great great story"}]


def train(folder: Path, kind: str = "lora", **sections: Any) -> Path:
    """A run that has moved far from where it began, so that the trained weights matter."""
    optimizer = {"lr": RATES[kind], "steps": 6, "guard_loss": 0.0, "guard_metric": 0.0}
    config = tiny.config(folder, **{**KINDS[kind], **sections}, optimizer=optimizer)
    assert main(["train", str(config), "--set", "run.keep=last", "--json"]) in (0, LEARNED_NOTHING)
    return folder / "run"


def completion(folder: Path, kind: str) -> Path:
    config = tiny.config(folder, **KINDS[kind])
    text = config.read_text().replace(
        'options = [\n    " bad",\n    " good",\n]', 'kind = "completion"\ncompletion = " {text}"\nend = false'
    )
    config.write_text(text)
    assert main(["train", str(config), "--set", f"optimizer.lr={RATES[kind]}", "--set", "run.keep=last", "--json"]) in (
        0,
        LEARNED_NOTHING,
    )
    return folder / "run"


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_those_of_the_model_elsewhere(kind: str, tmp_path: Path) -> None:
    trained = twinpass.load(train(tmp_path, kind))
    answers = trained.predict(ROWS)
    base, _ = twinpass.load_model(str(tmp_path / "model"))
    differences = []
    for row, answer in zip(ROWS, answers, strict=True):
        ids = torch.tensor([trained.tokenizer(f"Review: {row['text']} Sentiment:")["input_ids"]])
        bad, good = trained.tokenizer("bad good")["input_ids"]
        with torch.no_grad():
            own, before = (torch.softmax(model(ids).logits[0, -1, [bad, good]], -1) for model in (trained.model, base))
        assert list(answer.probabilities) == ["bad", "good"]
        assert list(answer.probabilities.values()) == pytest.approx(own.tolist(), abs=1e-5)
        assert answer.index == int(own.argmax())
        assert answer.answer == ("bad", "good")[answer.index]
        differences.append(float((own - before).abs().max()))
    assert max(differences) > 1e-3, "training has changed the answers"


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_the_most_probable_tokens_one_by_one(kind: str, tmp_path: Path) -> None:
    trained = twinpass.load(completion(tmp_path, kind))
    prompts = ["Review: a fine film Sentiment:", "Review: dull Sentiment:"]
    texts = trained.generate(prompts, max_tokens=5)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = trained.tokenizer(prompt)["input_ids"]
        start = len(ids)
        for _ in range(5):
            with torch.no_grad():
                ids.append(int(trained.model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert text == trained.tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert text == by_hugging_face(trained.model, trained.tokenizer, prompt)


def by_hugging_face(model: Any, tokenizer: Any, prompt: str, tokens: int = 5) -> str:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    options = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("kind", ["activated", "informed"])
def test_a_prompt_that_activates_nothing_is_continued_by_the_base_model(kind: str, tmp_path: Path) -> None:
    trained = twinpass.load(completion(tmp_path, kind))
    base, _ = twinpass.load_model(str(tmp_path / "model"))
    prompts = ["a great story", "Review: dull Sentiment:", "Review: fine"]
    texts = trained.generate(prompts, 5)
    assert texts == [by_hugging_face(trained.model, trained.tokenizer, prompt) for prompt in prompts]
    assert texts[0::2] == [by_hugging_face(base, trained.tokenizer, prompt) for prompt in prompts[0::2]]
    assert texts[1] != by_hugging_face(base, trained.tokenizer, prompts[1])


def test_texts_are_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = completion(tmp_path, "lora"), tmp_path / "texts.jsonl"
    trained, prompts = twinpass.load(run), ["Review: a fine film Sentiment:"] * 20
    sampled = trained.generate(prompts, 5, temperature=3.0, seed=4)
    assert len(set(sampled)) > 8, "every place has random numbers of its own"
    assert trained.generate(prompts, 5, temperature=3.0, seed=4) == sampled
    assert trained.generate(prompts, 5, temperature=3.0, seed=5) != sampled
    assert trained.generate(prompts[:2], 5, temperature=3.0, top_k=1) == trained.generate(prompts[:2], 5)
    command = ["predict", str(run), str(tmp_path / "train.jsonl"), "--out", str(out), "--json"]
    command += ["--temperature", "30", "--max-tokens", "5"]
    assert main(command) == 0
    whole = out.read_text()
    rows = trained.generate([f"Review: {row['text']} Sentiment:" for row in tiny.rows(12)], 5, temperature=30.0)
    assert [json.loads(line)["prediction"]["text"] for line in whole.splitlines()] == rows
    assert len(set(rows)) > 1
    out.write_text("".join(whole.splitlines(keepends=True)[:4]))
    assert main(command) == 0
    assert out.read_text() == whole, "continued with the same random numbers"
    capsys.readouterr()
    refused = {
        "nothing is sampled at temperature 0": ["--top-p", "0.5", "--seed", "1"],
        "--top-p 1.5": ["--top-p", "1.5", "--temperature", "1"],
        "--temperature -1": ["--temperature", "-1"],
        "--max-tokens 0": ["--max-tokens", "0"],
    }
    for message, options in refused.items():
        assert main(["generate", str(run), "--prompt", "a", *options]) == 2
        assert message in capsys.readouterr().err


def test_rows_with_prompts_are_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out, rows = completion(tmp_path, "lora"), tmp_path / "texts.jsonl", tmp_path / "prompts.jsonl"
    prompts = ["Review: dull Sentiment:", "great", "a fine film"]
    rows.write_text("".join(json.dumps({"prompt": prompt, "id": i}) + "\n" for i, prompt in enumerate(prompts)))
    command = ["generate", str(run), "--rows", str(rows), "--out", str(out)]
    command += ["--max-tokens", "4", "--temperature", "30", "--seed", "2", "--json"]
    assert main(command) == 0
    whole = out.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    expected = twinpass.load(run).generate(prompts, 4, temperature=30.0, seed=2)
    assert [(line["id"], line["prediction"]["text"]) for line in lines] == list(enumerate(expected))
    out.write_text(whole.splitlines(keepends=True)[0])
    capsys.readouterr()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["continued_from"] == 1
    assert out.read_text() == whole, "continued with the same random numbers"
    refused = {
        "give either --prompt, or --rows": ["--prompt", "a", "--rows", str(rows)],
        "a line for each of --rows goes there": ["--prompt", "a", "--out", str(out)],
        "there is no text in a field prompt; 'twinpass predict'": ["--rows", str(tmp_path / "eval.jsonl")],
    }
    for message, options in refused.items():
        assert main(["generate", str(run), *options]) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_eval_measures_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, rewards = completion(tmp_path, "lora"), tmp_path / "rewards.py"
    rewards.write_text("def same(completions, answer):\n    return [c == a for c, a in zip(completions, answer)]\n")
    command = ["eval", str(run), "--write", "--max-tokens", "3", "--json"]
    capsys.readouterr()
    assert main([*command, "--reward", f"{rewards}:same"]) == 0
    found = json.loads(capsys.readouterr().out)["measures"]
    rows = tiny.rows(6)
    texts = twinpass.load(run).generate([f"Review: {row['text']} Sentiment:" for row in rows], 3)
    right = [str(row["text"]) for row in rows]
    f1 = [token_f1(text, answer) for text, answer in zip(texts, right, strict=True)]
    assert found["token_f1"]["value"] == pytest.approx(sum(f1) / 6)
    exact = sum(normalised(text) == normalised(answer) for text, answer in zip(texts, right, strict=True))
    assert found["exact_match"]["value"] == pytest.approx(exact / 6)
    assert 0 <= found["rewards/same/pass_rate"]["value"] <= found["exact_match"]["value"]
    assert {"perplexity", "token_probability"} < found.keys()
    assert main(["eval", str(run), "--max-tokens", "3"]) == 2
    assert main(["eval", str(train(tmp_path / "choice")), "--write"]) == 2
    assert "have no text to write" in capsys.readouterr().err.replace("\n", " ")
    rewards.write_text("def same(completions, level):\n    return [0 for _ in completions]\n")
    assert main([*command, "--reward", f"{rewards}:same"]) == 2
    assert "level" in capsys.readouterr().out


def test_a_text_goes_no_further_than_the_window(tmp_path: Path) -> None:
    trained = twinpass.load(completion(tmp_path, "lora"))
    prompt = "a " * 60
    assert trained.generate([prompt], 50) == [by_hugging_face(trained.model, trained.tokenizer, prompt, 4)]
    with pytest.raises(
        DataError, match="prompt 2: 64 tokens; expected at least 1, and fewer than the model's window of 64"
    ):
        trained.generate(["a", "a " * 64], 5)


def test_a_text_ends_before_a_stop_string(tmp_path: Path) -> None:
    trained = twinpass.load(completion(tmp_path, "lora"))
    prompt = "Review: a fine film Sentiment:"
    (text,) = trained.generate([prompt], max_tokens=5)
    word = text.split()[1]
    assert trained.generate([prompt], max_tokens=5, stop=["nowhere", word]) == [text[: text.index(word)]]


def test_a_half_written_file_of_predictions_is_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(["fine", "dull", "a"])))
    out = tmp_path / "predictions.jsonl"
    command = ["predict", str(run), str(rows), "--out", str(out), "--json"]
    capsys.readouterr()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == {"predictions": str(out), "rows": 3, "continued_from": 0}
    whole = out.read_text()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [(line["text"], line["id"]) for line in lines] == [("fine", 0), ("dull", 1), ("a", 2)]
    expected = [
        answer.probabilities for answer in twinpass.load(run).predict([{"text": line["text"]} for line in lines])
    ]
    for line, shares in zip(lines, expected, strict=True):
        assert line["prediction"]["probabilities"] == pytest.approx(dict(shares), abs=1e-6)
    out.write_text(whole[: len(whole.splitlines()[0]) + 30])
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["continued_from"] == 1
    again = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["prediction"]["answer"] for line in again] == [line["prediction"]["answer"] for line in lines]
    assert main([*command, "--max-tokens", "3", "--stop", "a"]) == 2
    assert "--max-tokens, --stop: the task is to choose" in json.loads(capsys.readouterr().out)["error"]
    assert main(["predict", str(run), str(rows)]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in printed] == [0, 1, 2]


def test_a_file_of_other_predictions_is_not_continued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = train(tmp_path), tmp_path / "out.jsonl"
    assert main(["predict", str(run), str(tmp_path / "eval.jsonl"), "--out", str(out), "--json"]) == 0
    before = out.read_text()
    (tmp_path / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.rows(6)[1:]))
    assert main(["predict", str(run), str(tmp_path / "others.jsonl"), "--out", str(out), "--json"]) == 2
    other = train(tmp_path / "other", run={"seed": 5})
    assert main(["predict", str(other), str(tmp_path / "eval.jsonl"), "--out", str(out), "--json"]) == 2
    assert "line 1: it is not the prediction for" in capsys.readouterr().err
    assert out.read_text() == before


def test_predict_writes_texts_where_the_task_is_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = completion(tmp_path, "lora")
    capsys.readouterr()
    assert main(["predict", str(run), str(tmp_path / "eval.jsonl"), "--max-tokens", "3"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    trained = twinpass.load(run)
    texts = trained.generate([f"Review: {row['text']} Sentiment:" for row in tiny.rows(6)], 3)
    assert [line["prediction"]["text"] for line in lines] == texts
    with pytest.raises(DataError, match="use write"):
        trained.predict(ROWS)
    prompt = "Review: dull Sentiment:"
    assert main(["generate", str(run), "--prompt", prompt, "--prompt", "a", "--max-tokens", "3", "--json"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [
        {"prompt": p, "text": t} for p, t in zip([prompt, "a"], trained.generate([prompt, "a"], 3), strict=True)
    ]


def test_a_step_that_was_rebuilt_is_used(tmp_path: Path) -> None:
    run = train(tmp_path)
    with pytest.raises(ModelError, match=r"twinpass replay .* --step 0"):
        twinpass.load(run, step=0)
    assert main(["replay", str(run), "--step", "0", "--json"]) == 0
    (before,), (after,) = (twinpass.load(run, step).predict(ROWS[:1]) for step in (0, None))
    assert before != after


def in_python(model: Any, tokenizer: Any, out: Path, trainable: Any) -> None:
    options: dict[str, Any] = {
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
    assert f'base_model: "{folder}"' in (tmp_path / "adapter/README.md").read_text()
    words = folder / "tokenizer.json"
    kept = words.read_text()
    words.write_text(kept.replace('"film"', '"movie"'))
    with pytest.raises(ModelError, match=r"give them again.*as the tokenizer of .*model is another one"):
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


def test_a_model_that_was_trained_itself_needs_nothing_else(tmp_path: Path) -> None:
    run, model = tmp_path / "run", tiny.model()
    in_python(model, tiny.tokenizer(), run, twinpass.Full())
    trained = twinpass.load(run)
    assert torch.equal(logits(trained.model), logits(model)), "it was trained in place"
    assert trained.tokenizer("a fine film")["input_ids"] == tiny.tokenizer()("a fine film")["input_ids"]


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="there is no run here"):
        twinpass.load(tmp_path)
    run = train(tmp_path / "one")
    other = tiny.model()
    with torch.no_grad():
        next(iter(other.parameters())).add_(1.0)
    with pytest.raises(ModelError, match="another base model"):
        twinpass.load(run, model=other, tokenizer=tiny.tokenizer())
    with pytest.raises(DataError, match="row 1"):
        twinpass.load(run).predict([{"review": "fine"}])


def test_eval_measures_a_run_and_compares_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = train(tmp_path / "a"), train(tmp_path / "b", "full")
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(["eval", str(run), str(tmp_path / "a/eval.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found, "the held-out rows by their name"
    assert main(["eval", str(run), str(tmp_path / "a/t*n.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 12
    (tmp_path / "unlabelled.jsonl").write_text('{"text": "fine"}\n')
    assert main(["eval", str(run), str(tmp_path / "unlabelled.jsonl"), "--json"]) == 2
    assert "rows have to say what is right" in capsys.readouterr().err.replace("\n", " ")
    assert main(["eval", str(run), "-", "--task", str(tmp_path / "a/config.toml"), "--compare", str(other)]) == 2
    refused = capsys.readouterr().err.replace("\n", " ")
    assert "--task names rows of its own" in refused
    assert "standard input is read once" in refused
    answers = twinpass.load(run).predict(tiny.rows(6))
    right = [answer.index == row["label"] for answer, row in zip(answers, tiny.rows(6), strict=True)]
    assert found["measures"]["accuracy"]["value"] == found["metric"] == sum(right) / 6
    assert found["metric"] == json.loads((run / "summary.json").read_text())["final_metric"]
    assert sum(map(sum, found["measures"]["confusion"])) == found["examples"] == 6
    assert main(["eval", str(run), "--compare", str(other), "--json"]) == 2, "other files, other rows"
    assert "--task CONFIG" in capsys.readouterr().err
    task = str(tmp_path / "b/config.toml")
    assert main(["eval", str(run), "--compare", str(other), "--task", task, "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["comparison"]["difference"]["value"] == pytest.approx(
        compared["metric"] - compared["compared_with"]["metric"]
    )
    assert main(["eval", str(run), "--compare", str(run)]) == 0
    assert "accuracy +0.000 (95% +0.000 to +0.000), p = 1 (McNemar, exact)" in " ".join(capsys.readouterr().err.split())
    assert main(["eval", task, "--compare", str(run), "--json"]) == 2


def test_a_run_by_accuracy_alone_is_measured_and_used_as_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, objective={"kind": "accuracy"})
    losses = [record["losses"] for record in read(run / "journal.jsonl").records if record["kind"] == "step"]
    assert {4 * loss % 1 for step in losses for pair in step for loss in pair} == {0.0}, "shares of a batch of four"
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    answers = twinpass.load(run).predict(tiny.rows(6))
    right = [answer.index == row["label"] for answer, row in zip(answers, tiny.rows(6), strict=True)]
    assert found["measures"]["accuracy"]["value"] == found["metric"] == pytest.approx(sum(right) / 6)


def logits(model: Any, text: str = "Review: a fine film Sentiment:") -> torch.Tensor:
    ids = torch.tensor([tiny.tokenizer()(text)["input_ids"]])
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


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
        (run / "config.toml").read_text().strip(),
        f'base_model: "{tmp_path}/model"',
    ):
        assert fact in text
    assert base_name("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_model_card_names_all_sources_and_how_it_was_learned(tmp_path: Path) -> None:
    run, out = train(tmp_path), tmp_path / "exported"
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
    assert not out.exists()


@pytest.mark.parametrize(
    ("kind", "arguments", "words"),
    [
        ("activated", ["--format", "hf", "--merge"], "it cannot be merged. Use --format peft"),
        ("activated", ["--format", "gguf-ready"], "it cannot be merged. Use --format peft"),
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
