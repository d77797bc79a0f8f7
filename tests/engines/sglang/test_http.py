"""A server that somebody else started, with SGLang's own defaults (overlap scheduling on) and an API key; and what becomes of a run when it dies."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from threading import Thread
from typing import Any, cast

import httpx
import pytest
import torch
from real_sglang import SECRET, SHOTS, START_SECONDS, TEXTS, TOLERANCE, Loaded, RunningServer, requests_of, worst
from sglang_runs import begin, die_after, require_finished, require_replayed, resume, settings, steps

from twinpass.cli.main import main
from twinpass.core import BASE, Lane, Probe, Term
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.engine.sglang.address import KEY
from twinpass.engine.sglang.engine import SglangEngine
from twinpass.engine.sglang.http import Http
from twinpass.engine.sglang.launch import connect
from twinpass.engine.subject import Subject
from twinpass.errors import EngineError
from twinpass.model.trainable import Activated, Full, Trainable
from twinpass.reuse.auto import Auto
from twinpass.train.journal import read


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(folder, tmp_path_factory.mktemp("server") / "log")
    running.start()
    yield running
    running.kill()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)


@contextmanager
def connected(
    loaded: Loaded, server: RunningServer, trainable: Trainable, *, inplace: bool = False
) -> Iterator[SglangEngine]:
    model, tokenizer = loaded
    invocation = tuple(tokenizer("Sentiment:")["input_ids"]) if isinstance(trainable, Activated) else ()
    subject = Subject(
        deepcopy(model),
        tokenizer,
        trainable,
        Auto(),
        str(server.folder),
        "float32",
        invocation=invocation,
        seed=3,
    )
    engine = connect(subject, server.url, timeout=300, perturbation="inplace" if inplace else "tandem")
    try:
        yield engine
    finally:
        engine.close()


def embedded_of(loaded: Loaded, trainable: Trainable, *, inplace: bool = False) -> TorchEngine:
    invocation = tuple(loaded[1]("Sentiment:")["input_ids"]) if isinstance(trainable, Activated) else ()
    kind = "inplace" if inplace else "tandem"
    return TorchEngine(deepcopy(loaded[0]), trainable, invocation=invocation, seed=3, perturbation=kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("trainable", [Activated(), Full()], ids=["activated", "full"])
def test_scores_and_updates_are_the_embedded_engines(
    loaded: Loaded, server: RunningServer, trainable: Trainable
) -> None:
    """With overlap scheduling, a flush right after a batch can be refused: every move waits until SGLang is idle."""
    inplace = isinstance(trainable, Full)
    eps = 2.0**-10 if inplace else 2e-2
    requests, lanes = requests_of(loaded[1], SHOTS)[:4], [Lane(Probe(7), sign, eps) for sign in (1, -1)]
    embedded = embedded_of(loaded, trainable, inplace=inplace)
    with connected(loaded, server, trainable, inplace=inplace) as sglang:
        for step in range(2):
            found = sglang.score(requests, [*lanes, BASE])
            assert worst(found.values[:1], found.values[1:2]) > 20 * TOLERANCE
            assert worst(found.values, embedded.score(requests, [*lanes, BASE]).values) < TOLERANCE
            for engine in (embedded, sglang):
                engine.update([Term(5 + step, 1e-5 if inplace else 1e-2)])
        assert found.work.hit_rate > (0.5 if inplace else 0.9)


def test_a_flush_that_is_refused_stops_training(loaded: Loaded, server: RunningServer) -> None:
    """Overlap scheduling, and a request of somebody else's that does not end: it is paused, so that it runs for as long as is needed."""
    requests, lanes = requests_of(loaded[1])[:4], [Lane(Probe(5), 1, 2.0**-10)]
    expected = embedded_of(loaded, Full(), inplace=True).score(requests, lanes).values
    with connected(loaded, server, Full(), inplace=True) as sglang:
        client = cast(Http, sglang._server._transport)._client
        sglang._server._patience = 0.3
        sampling = {"max_new_tokens": 400, "ignore_eos": True, "temperature": 0}
        other = Thread(
            target=client.post,
            args=("/generate",),
            kwargs={"json": {"input_ids": [5, 6, 7] * 9, "sampling_params": sampling}},
        )
        other.start()
        time.sleep(2)
        client.post("/pause_generation", json={"mode": "in_place"})
        try:
            with pytest.raises(EngineError, match=r"busy with other requests, and was for 0\.3 s"):
                sglang.score(requests, lanes)
        finally:
            client.post("/continue_generation", json={})
            other.join()
        sglang._server._patience = 20.0
        assert worst(sglang.score(requests, lanes).values, expected) < TOLERANCE


def test_another_model_or_tokenizer_is_refused(loaded: Loaded, server: RunningServer) -> None:
    model, tokenizer = deepcopy(loaded[0]), loaded[1]
    with torch.no_grad():
        model.get_parameter("model.layers.3.mlp.up_proj.weight").mul_(1.1)
    with (
        pytest.raises(EngineError, match="another model than the configuration's"),
        connected((model, tokenizer), server, Activated()),
    ):
        pass

    other = deepcopy(tokenizer)
    other.add_tokens(["quick"])
    with (
        pytest.raises(EngineError, match="another tokenizer"),
        connected((loaded[0], other), server, Activated()),
    ):
        pass


def test_a_server_that_was_not_started_for_it_is_refused(loaded: Loaded, server: RunningServer) -> None:
    trainable = Activated(rank=64, targets=("q_proj", "down_proj"))
    with (
        pytest.raises(EngineError, match=r"--max-lora-rank 64 \(it has 8;.*\); --lora-target-modules q_proj down_proj"),
        connected(loaded, server, trainable),
    ):
        pass
    subject = Subject(deepcopy(loaded[0]), loaded[1], Full(), Auto(), "x", "bfloat16")
    with pytest.raises(EngineError, match="--dtype bfloat16"):
        connect(subject, server.url, timeout=60)


def test_a_wrong_key_is_refused_and_not_repeated(
    loaded: Loaded, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "the-wrong-one")
    with pytest.raises(EngineError, match="refuses the API key") as caught, connected(loaded, server, Activated()):
        pass
    assert "the-wrong-one" not in str(caught.value)


def test_a_server_that_does_not_answer_in_time(loaded: Loaded, server: RunningServer) -> None:
    requests = requests_of(loaded[1], "Nobody has read this before.\n")[:2]
    with connected(loaded, server, Activated()) as sglang:
        transport = cast(Http, sglang._server._transport)
        transport._client.post("/pause_generation", json={"mode": "in_place"})
        transport._client.timeout = httpx.Timeout(2.0)
        try:
            with pytest.raises(EngineError, match=r"gave no answer within 2 s; raise \[engine\] timeout"):
                sglang.score(requests, [BASE])
        finally:
            transport._client.timeout = httpx.Timeout(300.0)
            transport._client.post("/continue_generation", json={})


ASKED = {"max_new_tokens": 12, "temperature": 0, "ignore_eos": True}


def answers_of(client: httpx.Client, prompts: list[list[int]]) -> list[tuple[list[int], list[float]]]:
    """What a server writes for somebody else, each asked alone, and how likely it finds that."""
    found = []
    for prompt in prompts:
        asked = {"input_ids": prompt, "sampling_params": ASKED, "return_logprob": True}
        told = client.post("/generate", json=asked).raise_for_status().json()["meta_info"]["output_token_logprobs"]
        found.append(([int(token) for _, token, *_ in told], [float(value) for value, *_ in told]))
    return found


def test_other_clients_get_the_base_models_texts_while_a_run_trains(
    loaded: Loaded, server: RunningServer, tmp_path: Path
) -> None:
    """They ask throughout for what the run's lanes read too, so that keys and values of an adapter would show, in text or likelihood."""
    run = tmp_path / "run"
    changes: dict[str, Any] = {"model.path": server.folder, "engine.url": server.url, "reuse.budget": "1GiB"}
    prompts = [[*request.prompt] for request in requests_of(loaded[1], SHOTS)[::3]]
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {SECRET}"}, timeout=300) as client:
        expected = answers_of(client, prompts)
        served = set()
        process = begin(*settings(run, **changes))
        while process.poll() is None:
            before = steps(run)
            for (tokens, own), (right, theirs) in zip(answers_of(client, prompts), expected, strict=True):
                assert tokens == right
                assert own == pytest.approx(theirs, abs=TOLERANCE)
            served.add(before)
        assert process.wait() in (0, 3), process.communicate()[1]
    assert len(served) > 3, "they were served at several steps"
    require_finished(run, tmp_path / "again")


@pytest.mark.parametrize(
    "settings",
    [
        {"trainable.kind": "lora", "epsilon.value": 0.1, "optimizer.lr": 1e-2, "task.samples": 2},
        {
            "trainable.kind": "full",
            "engine.perturbation": "inplace",
            "epsilon.value": 2.0**-6,
            "optimizer.lr": 1e-6,
            "generation.temperature": 0.0,
        },
    ],
    ids=["lora-sampled", "full-greedy"],
)
def test_rewards_train_on_a_server(
    loaded: Loaded, server: RunningServer, tmp_path: Path, settings: dict[str, object]
) -> None:
    """Texts under adapters or moved weights, rewarded: two steps, whose journal the embedded engine replays without a reward."""
    (tmp_path / "rewards.py").write_text(
        "def vowels(completions, **kwargs):\n"
        "    return [sum(c in 'aeiou' for c in text) / (1 + len(text)) for text in completions]\n"
    )
    rows = [f'{{"prompt": "Review: {text}\\nSentiment:"}}\n' for text in TEXTS]
    (tmp_path / "prompts.jsonl").write_text("".join(rows))
    config = tmp_path / "config.toml"
    config.write_text(
        f"""[model]\npath = "{server.folder}"\n[task]\nkind = "reward"\ntrain = "prompts.jsonl"\neval = "prompts.jsonl"\n"""
        """rewards = ["rewards.py:vowels"]\n[generation]\nmax_tokens = 6\n"""
        f"""[estimator]\nprobes = 2\n[optimizer]\nsteps = 2\nbatch_size = 2\n[engine]\nkind = "sglang"\nurl = "{server.url}"\n"""
        f"""[run]\nout = "{tmp_path / "run"}"\nkeep = "last"\n"""
    )
    chosen = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    process = begin(str(config), *chosen)
    said = process.communicate(timeout=START_SECONDS)[1]
    assert process.returncode in (0, 3), said
    records = [record for record in read(tmp_path / "run" / "journal.jsonl").records if record["kind"] == "step"]
    assert len(records) == 2
    assert len({loss for record in records for pair in record["losses"] for loss in pair}) > 2
    assert any(number for record in records for number in record["gradients"])
    require_replayed(tmp_path / "run", tmp_path / "again")
    with connected(loaded, server, Activated()):
        """The server has its own weights again."""


def evaluated(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What ``twinpass eval`` says."""
    capsys.readouterr()
    assert main(["eval", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_a_run_and_its_configuration_are_evaluated(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration by the server; a run by its journal, without asking the server, and to what the server had said of it."""
    run = tmp_path / "run"
    changes: dict[str, Any] = {"model.path": server.folder, "engine.url": server.url, "reuse.budget": "1GiB"}
    words = settings(run, **changes | {"run.keep": "last", "optimizer.lr": 2e-2})
    process = begin(*words)
    said = process.communicate(timeout=START_SECONDS)[1]
    assert process.returncode in (0, 3), said
    base, trained = (record for record in read(run / "journal.jsonl").records if record["kind"] == "evaluation")
    assert abs(base["loss"] - trained["loss"]) > 20 * TOLERANCE
    config = evaluated(capsys, *words)
    assert (config["metric"], config["loss"]) == (base["metric"], pytest.approx(base["loss"], abs=TOLERANCE))
    monkeypatch.setenv(KEY, "the-wrong-one")
    assert main(["eval", *words, "--json"]) == 1
    assert "refuses the API key" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    rows = tmp_path / "others.jsonl"
    rows.write_text("".join(json.dumps({"text": text, "label": "positive"}) + "\n" for text in TEXTS))
    for step, record in ((0, base), (8, trained)):
        found = evaluated(capsys, str(run), "--step", str(step))
        assert (found["step"], found["examples"], found["metric"]) == (step, 8, record["metric"])
        assert found["loss"] == pytest.approx(record["loss"], abs=TOLERANCE)
    assert evaluated(capsys, str(run), str(rows))["examples"] == len(TEXTS)


def test_a_run_survives_its_server(loaded: Loaded, server: RunningServer, tmp_path: Path) -> None:
    """All weights are trained in place; the server's next process has them from its files, and the run brings them to where they were."""
    run = tmp_path / "run"
    changes: dict[str, Any] = {
        "model.path": server.folder,
        "engine.url": server.url,
        "engine.perturbation": "inplace",
    }
    said = die_after(run, begin(*settings(run, "reviews-full.toml", **changes)), server.kill)
    assert "cannot be reached" in said
    assert "--resume" in said
    assert resume(run) == 1, "without a server nothing continues"
    server.start()
    assert resume(run) == 0
    require_finished(run, tmp_path / "again")
    texts = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert texts
    assert not any(SECRET.encode() in text for text in texts)


def test_a_run_that_died_continues_on_the_server_it_left_behind(
    loaded: Loaded, server: RunningServer, tmp_path: Path
) -> None:
    """The client is killed, and the server stands somewhere between two lanes: nobody else may score there, and the run takes it up again."""
    run = tmp_path / "run"
    changes: dict[str, Any] = {
        "model.path": server.folder,
        "engine.url": server.url,
        "engine.perturbation": "inplace",
    }
    process = begin(*settings(run, "reviews-full.toml", **changes))
    until = time.monotonic() + START_SECONDS
    while steps(run) < 2 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert 2 <= steps(run) < 8
    time.sleep(3)  # what the server was still doing
    with (
        pytest.raises(EngineError, match="a run trains the weights of this SGLang"),
        connected(loaded, server, Activated()),
    ):
        pass
    assert resume(run) == 0
    require_finished(run, tmp_path / "again")
    with connected(loaded, server, Activated()):
        """The server has its own weights again."""
