"""What a run leaves behind is used: it answers and writes as the trained model does."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from trained import KINDS, ROWS, by_hugging_face, completion, train

import twinpass
from twinpass.cli.main import main
from twinpass.errors import DataError, JournalError, ModelError
from twinpass.report.written import normalised, token_f1
from twinpass.train.journal import read
from twinpass.use.settings import RunOrigin


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


def test_what_reads_rows_otherwise_than_in_training_is_warned_of(tmp_path: Path) -> None:
    run = train(tmp_path)
    words, config = tmp_path / "model/tokenizer.json", tmp_path / "model/config.json"
    words.write_text(words.read_text().replace('"film"', '"movie"'))
    config.write_text(config.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 500.0'))
    with pytest.warns(
        UserWarning, match="on other ground: rope_parameters was .*; the tokenizer is another one. Give it"
    ):
        twinpass.load(run)


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


@pytest.mark.parametrize("kind", ["activated", "informed"])
def test_a_prompt_that_activates_nothing_is_continued_by_the_base_model(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = twinpass.load(completion(tmp_path, kind))
    base, _ = twinpass.load_model(str(tmp_path / "model"))
    prompts = ["a great story", "Review: dull Sentiment:", "Review: fine", "dull"]
    with monkeypatch.context() as patched:
        patched.setattr(RunOrigin, "base", lambda origin: pytest.fail("the model that is there is read again"))
        texts = trained.generate(prompts, 5)
        assert trained.generate(prompts, 5) == texts, "also from what the cache holds"
    assert texts == [by_hugging_face(trained.model, trained.tokenizer, prompt) for prompt in prompts]
    plain = [prompts[0], *prompts[2:]]
    assert [texts[0], *texts[2:]] == [by_hugging_face(base, trained.tokenizer, prompt) for prompt in plain]
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
    assert trained.generate([prompt], 50) == [by_hugging_face(trained.model, trained.tokenizer, prompt, 5)]
    with pytest.raises(
        DataError, match="prompt 2: 65 tokens; expected at least 1, and no more than the model's window of 64"
    ):
        trained.generate(["a", "a " * 65], 5)


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
    *_, evaluated = [record for record in read(run / "journal.jsonl").records if record["kind"] == "evaluation"]
    assert found["loss"] == pytest.approx(evaluated["loss"])
    assert found["loss"] == pytest.approx(found["measures"]["cross_entropy"]["value"])
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
    assert "accuracy +0.000 (95% +0.000 to +0.000), p = 1 (McNemar, exact)" in " ".join(capsys.readouterr().out.split())
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
    assert found["loss"] == pytest.approx(1 - found["metric"]), (
        "the objective's loss, and not the cross-entropy beside it"
    )
