"""What reuse saves on the real model, beside plain MeZO in the same run: ``python benchmarks/reuse.py --json FILE``.

Scenarios: ``reviews-8shot`` (full-parameter, demonstrations shared by all), ``options`` (a long context with four
answers), ``activated`` and ``activated-8shot`` (an adapter that acts from the suffix on, against LoRA by plain MeZO).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.bench.naive import NaiveMezo
from twinpass.core import BASE, Lane, Probe, Request, Term, Work
from twinpass.engine.embedded.engine import TorchEngine
from twinpass.model.load import load
from twinpass.model.trainable import Activated, Full
from twinpass.objective.choice import Choice
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json
from twinpass.reuse.activated import ActivatedReuse
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.example import Example
from twinpass.task.rows import Row
from twinpass.task.sources.read import read_rows

DATA = Path(__file__).parent.parent / "examples" / "data"
BATCH, EPS = 16, 1e-3
SHOTS = 8
OPTIONS, LABELS, SUFFIX = (" terrible", " great"), ("negative", "positive"), "Sentiment:"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
CHOICE = Choice()
T = TypeVar("T")


def template(shots: Sequence[Row]) -> ChoiceTemplate:
    """The demo's task, with solved examples in front."""
    solved = "".join(
        f"Review: {row.fields['text']}\n{SUFFIX}{OPTIONS[LABELS.index(str(row.fields['label']))]}\n\n" for row in shots
    )
    prompt = solved.replace("{", "{{").replace("}", "}}") + "Review: {text}\n"
    return ChoiceTemplate(prompt=prompt, suffix=SUFFIX, options=OPTIONS, labels=LABELS)


def batches(tokenizer: PreTrainedTokenizerBase, shots: int, count: int) -> list[list[Example]]:
    rows = read_rows(DATA / "reviews-train.jsonl", None)
    examples = template(rows[-shots:] if shots else []).encode(rows[: count * BATCH], tokenizer)
    return [examples[i * BATCH : (i + 1) * BATCH] for i in range(count)]


def timed(work: Callable[..., T], *args: Any) -> tuple[float, T]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    result = work(*args)
    return time.perf_counter() - start, result


def signs(seed: int, eps: float = EPS) -> list[Lane]:
    return [Lane(Probe(seed), 1, eps), Lane(Probe(seed), -1, eps)]


def median(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def twinpass_step(engine: TorchEngine, part: Sequence[Example], seed: int, eps: float) -> Work:
    """Both signs scored and the weights updated (by nothing, so that all steps do the same)."""
    work = engine.score(CHOICE.requests(part), signs(seed, eps)).work
    engine.update([Term(seed, 0.0)])
    return work


def reviews_8shot(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Full-parameter steps with demonstrations in front: twinpass and plain MeZO, and that both see the same losses."""
    parts = batches(tokenizer, SHOTS, 3)
    engine = TorchEngine(model, Full(), noise="binomial")
    copy = deepcopy(model)
    rival = NaiveMezo(copy, list(copy.parameters()), CHOICE)
    ours, plain = list[float](), list[float]()
    for i, part in enumerate(parts):
        ours.append(timed(twinpass_step, engine, part, i, EPS)[0])
        if i:
            plain.append(timed(rival.step, part, i, EPS, 0.0)[0])
    del copy, rival
    part = parts[0]
    scores = engine.score(CHOICE.requests(part), signs(0))
    losses = [CHOICE.loss(part, values) for values in scores.values]
    expected = []
    for lane in signs(0):
        engine.update([Term(0, lane.scale)])
        expected.append(NaiveMezo(model, [], CHOICE).loss(part))
        engine.update([Term(0, -lane.scale)])
    return {
        "prompt_tokens_shared": shared_tokens(tokenizer, SHOTS),
        "token_layers": {"demand": scores.work.demand, "computed": scores.work.computed},
        "demand_over_computed": scores.work.demand / scores.work.computed,
        "losses": losses,
        "losses_of_plainly_perturbed_weights": expected,
        "loss_difference": max(abs(a - b) for a, b in zip(losses, expected, strict=True)),
        "twinpass_step_s": median(ours[1:]),
        "plain_mezo_step_s": median(plain),
        "speedup": statistics.median(plain) / statistics.median(ours[1:]),
    }


def options(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Contexts of 200 tokens with four answers, against the number of distinct tokens."""
    rows = read_rows(DATA / "reviews-train.jsonl", None)
    text = [tokenizer(str(row.fields["text"]))["input_ids"] for row in rows[:400]]
    stream = [token for ids in text for token in ids]
    contexts = [tuple(stream[i * 200 : (i + 1) * 200]) for i in range(8)]
    answers = [
        tuple(tokenizer(f" {word}")["input_ids"]) for word in ("great", "terrible", "rather mediocre", "not bad at all")
    ]
    requests = [Request(context, answer) for context in contexts for answer in answers]
    work = TorchEngine(model, Full()).score(requests, signs(1)).work
    layers = int(model.config.num_hidden_layers)
    distinct = {request.inputs[:n] for request in requests for n in range(1, len(request.inputs) + 1)}
    bound = 2 * layers * len(distinct)
    return {
        "token_layers": {"demand": work.demand, "computed": work.computed},
        "distinct_bound": bound,
        "computed_over_bound": work.computed / bound,
        "hit_rate": work.hit_rate,
    }


def activated(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, shots: int) -> dict[str, Any]:
    """An activated adapter over six epochs of two batches, and LoRA of the same size by plain MeZO on the same batches."""
    parts = batches(tokenizer, shots, 2)
    engine = TorchEngine(model, Activated(8, 16.0, TARGETS), noise="gaussian", reuse=ActivatedReuse(budget=2 << 30))
    losses = {
        "twinpass": CHOICE.loss(
            parts[0], TorchEngine(model, Full()).score(CHOICE.requests(parts[0]), [BASE]).values[0]
        ),
        "plain": NaiveMezo(model, [], CHOICE).loss(parts[0]),
    }
    adapted: Any = get_peft_model(deepcopy(model), LoraConfig(r=8, lora_alpha=16, target_modules=list(TARGETS)))
    rival = NaiveMezo(adapted, [p for name, p in adapted.named_parameters() if "lora_" in name], CHOICE)
    first, later, plain, work = list[float](), list[float](), list[float](), list[Work]()
    for step in range(12):
        part = parts[step % 2]
        took, done = timed(twinpass_step, engine, part, step, 1e-2)
        (first if step < 2 else later).append(took)
        work.append(done)
        if step in (3, 7):
            plain.append(timed(rival.step, part, step, 1e-2, 0.0)[0])
    epoch = work[0] + work[1]
    return {
        "prompt_tokens_shared": shared_tokens(tokenizer, shots),
        "hit_rate_first_epoch": epoch.hit_rate,
        "hit_rate_later_epochs": (work[-2] + work[-1]).hit_rate,
        "reused_by_source": dict(work[-1].reused),
        "token_layers": {"demand": work[-1].demand, "computed": work[-1].computed},
        "loss_of_the_base_model": losses,
        "first_epoch_step_s": median(first),
        "later_step_s": median(later),
        "plain_lora_mezo_step_s": median(plain),
        "speedup_first_epoch": statistics.median(plain) / statistics.median(first),
        "speedup_later_epochs": statistics.median(plain) / statistics.median(later),
    }


def shared_tokens(tokenizer: PreTrainedTokenizerBase, shots: int) -> int:
    return len(batches(tokenizer, shots, 1)[0][0].prompt) - len(batches(tokenizer, 0, 1)[0][0].prompt)


SCENARIOS: dict[str, Callable[[PreTrainedModel, PreTrainedTokenizerBase], dict[str, Any]]] = {
    "reviews-8shot": reviews_8shot,
    "options": options,
    "activated": lambda model, tokenizer: activated(model, tokenizer, 0),
    "activated-8shot": lambda model, tokenizer: activated(model, tokenizer, SHOTS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--only", choices=SCENARIOS, nargs="+", default=list(SCENARIOS))
    args = parser.parse_args()
    model, tokenizer = load("smollm2")
    results = {}
    for name in args.only:
        results[name] = SCENARIOS[name](model, tokenizer)
        print(json.dumps({name: results[name]}, indent=2), flush=True)
    if args.json:
        about = {"workload": f"SmolLM2-135M, float32, batch of {BATCH} reviews", "commit": commit()}
        write_json(args.json, {**about, "scenarios": results, "machine": machine(), "versions": versions()})


if __name__ == "__main__":
    main()
