"""Random damage to what is read: it is refused with one of our errors, or means what it meant; nothing hangs.

``TWINPASS_FUZZ`` is how many inputs there are in all (5,000 if it is not set), shared by the targets; ``TWINPASS_FUZZ_SEED`` draws others.
"""

import json
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import damaged, each
from torch import Tensor

from twinpass.cache.pool import Pool
from twinpass.cache.spill import Spill
from twinpass.config.load import load_config
from twinpass.core import Estimate, Evaluation, Probe, StepReport
from twinpass.engine.sglang.calls import Call, Reply, reply_of
from twinpass.engine.sglang.server import Server, Variant
from twinpass.engine.sglang.transport import Transport
from twinpass.errors import TwinpassError
from twinpass.task.sources.read import read_rows
from twinpass.train.history import History
from twinpass.train.journal import Journal, read
from twinpass.train.records import evaluation_record, step_record

CONFIG = b"""
[model]
path = "model"
dtype = "float32"
[trainable]
kind = "activated"
rank = 4
alpha = 8.0
targets = ["q_proj", "v_proj"]
[task]
train = "train.jsonl"
eval = "eval.csv"
prompt = "Review: {text}\\n"
suffix = "Sentiment:"
options = [" bad", " good"]
[estimator]
kind = "spsa"
probes = 2
[optimizer]
lr = 1e-3
steps = 8
batch_size = 4
[epsilon]
kind = "join"
boundaries = [3]
schedules = [{kind = "constant", value = 1e-3}, {kind = "cosine", start = 1e-2, end = 1e-3, steps = 5}]
[reuse]
policy = "activated"
budget = "64MiB"
[engine]
compute_dtype = "bfloat16"
[run]
out = "runs/x"
seed = 3
"""


@pytest.mark.usefixtures("any_processor")
def test_configurations(tmp_path: Path, tally: Counter[str]) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(CONFIG)
    load_config(path)
    for chance in each(0.2, 1, tally):
        path.write_bytes(damaged(CONFIG, chance))
        try:
            odd = [f"optimizer.lr={chance.choice(['[' * 500, '9' * 5000, 'x', ''])}"] if chance.random() < 0.2 else []
            config = load_config(path, odd)
        except TwinpassError:
            tally["refused"] += 1
        else:
            assert config.optimizer.lr > 0
    assert tally["refused"]


JSONL = b"".join(json.dumps({"text": f"a fine film {i}", "label": i % 2}).encode() + b"\n" for i in range(6))
CSV = b"text,label\n" + b"".join(f'"a ""fine"", film {i}",{i % 2}\n'.encode() for i in range(6))


@pytest.mark.parametrize(("name", "data"), [("rows.jsonl", JSONL), ("rows.csv", CSV)])
def test_rows(name: str, data: bytes, tmp_path: Path, tally: Counter[str]) -> None:
    path = tmp_path / name
    for chance in each(0.1, 2, tally):
        path.write_bytes(damaged(data, chance))
        try:
            rows = read_rows(path)
        except TwinpassError:
            tally["refused"] += 1
            continue
        assert rows
        assert all(isinstance(row.fields, dict) and row.place.startswith(str(path)) for row in rows)


def journal(path: Path) -> list[dict[str, Any]]:
    """A journal of every kind of record."""
    records: list[dict[str, Any]] = []
    for step in range(4):
        estimate = Estimate((Probe(step), Probe(2**63 + step)), 1e-3, ((1.0, 0.5), (0.25, 1.0)), (1 / 3, -0.1))
        records.append(step_record(StepReport(step, estimate, (1 / 3, -0.05), 1e-3)))
        records.append(evaluation_record(step + 1, Evaluation("accuracy", 0.5, 0.7, 6, 0.2)))
    records.append({"kind": "rollback", "to": 2, "lr_scale": 0.5, "discarded": 1, "reason": "it diverged"})
    records.append({"kind": "changes", "step": 2, "ground": {"train": "ab"}})
    with closing(Journal.create(path, {"config": {}, "base": "0" * 64})) as kept:
        for record in records:
            kept.append(record)
    return records


def test_journals(tmp_path: Path, tally: Counter[str]) -> None:
    """Damage is noticed, unless it is to the last line, whose end may be missing: then the rest is as it was."""
    path = tmp_path / "journal.jsonl"
    records, whole = journal(path), path.read_bytes()
    assert [dict(record) for record in read(path).records] == records
    for chance in each(0.15, 3, tally):
        data = damaged(whole, chance)
        path.write_bytes(data)
        try:
            contents = read(path)
        except TwinpassError:
            tally["refused"] += 1
            continue
        found = [dict(record) for record in contents.records]
        assert found == records[: len(found)]
        assert data[: contents.sound_bytes] == whole[: contents.sound_bytes]


def test_records_with_sound_checks_that_make_no_sense(tmp_path: Path, tally: Counter[str]) -> None:
    path = tmp_path / "journal.jsonl"
    records = journal(path)
    values: list[Any] = [None, -1, 0, 7, 2**70, 1.5, "x", [], {}, [[]], True, [None]]
    for chance in each(0.15, 4, tally):
        changed = json.loads(json.dumps(records))
        for _ in range(chance.choice([1, 1, 2])):
            record = chance.choice(changed)
            key = chance.choice(list(record))
            match chance.randrange(3):
                case 0:
                    record[key] = chance.choice(values)
                case 1:
                    del record[key]
                    if not record:
                        changed.remove(record)
                case _:
                    changed.insert(chance.randrange(len(changed) + 1), record)
        try:
            history = History.of(changed)
        except TwinpassError:
            tally["refused"] += 1
            continue
        assert [step.step for step in history.steps] == list(range(len(history.steps)))


LAYERS, HEADS, WIDTH, SLOTS = 2, 1, 4, 12
TOKENS = ((1, 2, 3), (1, 2, 5, 6), (8, 9))


def content(tokens: tuple[int, ...]) -> Tensor:
    """[layers, 2, n, heads, width]: what depends on the tokens up to there only."""
    seeds = [hash(tokens[: i + 1]) % 2**31 for i in range(len(tokens))]
    parts = [torch.randn(LAYERS, 2, HEADS, WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(parts, 2)


def pool_of(values: Tensor) -> Pool:
    pool = Pool(SLOTS)
    for layer in range(LAYERS):
        pool.write(layer, torch.arange(SLOTS), *torch.zeros(2, SLOTS, HEADS, WIDTH))
        pool.write(layer, torch.arange(values.shape[2]), *values[layer])
    return pool


def test_shards(tmp_path: Path, tally: Counter[str]) -> None:
    """What comes back is what was stored; anything else is left out with a warning."""
    identity = {"base": "0123"}
    first = Spill(tmp_path, identity, LAYERS)
    new = torch.cat([content(tokens) for tokens in TOKENS], 2)
    first.store([(tokens, 0) for tokens in TOKENS], np.arange(new.shape[2]), pool_of(new))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for chance in each(0.15, 5, tally):
        path.write_bytes(damaged(whole, chance))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spill = Spill(tmp_path, identity, LAYERS)
            for tokens in TOKENS:
                pool = pool_of(torch.zeros(LAYERS, 2, 0, HEADS, WIDTH))
                at = np.arange(len(tokens))
                found = spill.fetch(tokens, at, at, pool)
                read_back = torch.stack(
                    [torch.stack(pool.read(layer, torch.from_numpy(found))) for layer in range(LAYERS)]
                )
                assert torch.equal(read_back, content(tokens)[:, :, found])


class Says(Transport):
    """Answers what it is told to."""

    outlives = True

    def __init__(self, answers: Any) -> None:
        self.answers = answers

    def generate(self, **arguments: Any) -> Any:
        return self.answers

    def load_adapter(self, name: str, tensors: Any, config: Any) -> str | None:
        return None

    def unload_adapter(self, name: str) -> str | None:
        return None

    def command(self, text: str) -> tuple[bool, str]:
        return True, "{}"

    def facts(self) -> Any:
        return {}

    def close(self) -> None:
        return


META: dict[str, Any] = {
    "prompt_tokens": 3,
    "cached_tokens": 1,
    "finish_reason": {"type": "length", "length": 0},
    "input_token_logprobs": [[None, 1, None], [-0.5, 2, None], [-1.5, 3, None]],
    "output_token_ids_logprobs": [[[-0.25, 9, None]]],
}


def test_answers_of_a_server(tally: Counter[str]) -> None:
    call = Call((1, 2, 3), 0, None, [9])
    asked: list[Callable[[Server], object]] = [
        lambda server: reply_of(call, server.score([call], [Variant()])[0]),
        lambda server: server.fill([(1, 2, 3)], [Variant()]),
        lambda server: server.read("a text"),
    ]
    right = json.dumps([{"meta_info": META}]).encode()
    assert Server(Says(json.loads(right))).fill([(1, 2, 3)], [Variant()]) == 2
    assert asked[0](Server(Says(json.loads(right)))) == Reply((-0.5, -1.5), {9: -0.25}, 2, 1)
    assert Server(Says(json.loads(right))).read("x") == ([1, 2, 3], [-0.5, -1.5])
    for chance in each(0.15, 6, tally):
        for _ in range(50):
            try:
                answers = json.loads(damaged(right, chance))
                break
            except (ValueError, RecursionError):
                continue
        else:
            answers = chance.choice([None, 3, "x", [], [None], [{}], [{"meta_info": 3}], {"error": "x"}])
        try:
            chance.choice(asked)(Server(Says(answers)))
        except TwinpassError:
            tally["refused"] += 1
            continue
