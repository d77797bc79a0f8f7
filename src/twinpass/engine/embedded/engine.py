"""The embedded engine: a Hugging Face model in this process, on the CPU or on one CUDA device."""

import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.cache.spill import Spill
from twinpass.core import (
    BASE,
    AdamStep,
    Decode,
    Held,
    Lane,
    Probe,
    Prompt,
    Request,
    Sampling,
    Scores,
    Term,
    Text,
    Texts,
    WeightsVersion,
    Work,
)
from twinpass.engine.base import Engine, Gradient, Slopes, require_fit, require_room
from twinpass.engine.embedded.descent.descent import Descent
from twinpass.engine.embedded.descent.feedback import fed_back, norm, unfit
from twinpass.engine.embedded.linear.lanes import LaneWeights, Running
from twinpass.engine.embedded.linear.mixed import LEAVE_OUT, Paired, arithmetic_of
from twinpass.engine.embedded.linear.products import Prepacked
from twinpass.engine.embedded.linear.tandem import Tandem
from twinpass.engine.embedded.scoring.jobs import Job, Result, SharedByLanes
from twinpass.engine.embedded.scoring.ledger import Ledger
from twinpass.engine.embedded.scoring.linearised import score_linear
from twinpass.engine.embedded.scoring.observe import Observer
from twinpass.engine.embedded.scoring.passes import RunningOf
from twinpass.engine.embedded.scoring.plain import score_plain
from twinpass.engine.embedded.scoring.scorer import PackedScorer
from twinpass.engine.embedded.scoring.sharing import SharingByBlock
from twinpass.engine.embedded.scoring.trial import PackingCheck, reads_columns, still_runs
from twinpass.engine.embedded.scoring.writing import Order, PackedWriter
from twinpass.engine.embedded.scoring.writing_plain import write_plain
from twinpass.errors import ModelError
from twinpass.model.causal import CausalModel, output_layer
from twinpass.model.identity import digest, hash_of, require_finite
from twinpass.model.informed import InformedAdapter
from twinpass.model.space import Observed, Space
from twinpass.model.trainable import Trainable, Trained
from twinpass.paths import expand
from twinpass.perturb.inplace import InPlaceWeights
from twinpass.perturb.lattice import Lattice, power_of_two
from twinpass.perturb.noise import Distribution
from twinpass.reuse.auto import Auto
from twinpass.reuse.base import Policy
from twinpass.reuse.exact import Exact
from twinpass.reuse.plan import Spans
from twinpass.settings import ComputeDtype

_ONE_LANE = (
    "estimator.perturbation = 'inplace' runs one lane at a time, so that none can take its prefix from another; "
    "use 'tandem', or reuse.policy = 'exact'"
)

Perturbation = Literal["tandem", "inplace"]

CHUNK_ROWS = 1536
"""Rows, of all lanes together, that run at once on a CPU; larger batches are cut, so that memory does not grow with them."""


class TorchEngine(Engine):
    """Score and train a causal language model with forward passes only.

    Args:
        model: any ``AutoModelForCausalLM``, on the CPU or on one CUDA device. It is trained in place, and where it lies (or stays
            untouched, with adapters).
        trainable: which weights are trained.
        noise: distribution of ``z``.
        perturbation: ``tandem`` runs both signs together and never writes weights while scoring; ``inplace`` walks
            the weights from lane to lane on an exact lattice, for modules that the tandem forward does not know.
        reuse: which forward work is shared, and how large the KV cache is.
        chunk_rows: rows that run at once; by default as many as suit the device.
        compute_dtype: what linear layers multiply in, if not in the model's dtype: ``bfloat16`` beside float32 weights, where
            lanes travel as sum and difference (:mod:`twinpass.engine.embedded.linear.mixed`).
        invocation: the tokens that activate an activated adapter; they are saved with it.
        seed: where new adapter weights come from.
        reload: returns the base checkpoint's tensors by name, for :meth:`reset`; adapters do not need it.
        tokenizer: what is saved together with a trained model.

    Raises:
        ModelError: the model or its trainable weights cannot be used; the message says which and why.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trainable: Trainable,
        *,
        noise: Distribution = "binomial",
        perturbation: Perturbation = "tandem",
        reuse: Policy | None = None,
        chunk_rows: int | None = None,
        compute_dtype: ComputeDtype | None = None,
        invocation: tuple[int, ...] = (),
        seed: int = 0,
        reload: Callable[[], Mapping[str, Tensor]] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.model, self._tokenizer = model, tokenizer
        model.train(False)
        self.noise: Distribution = noise
        self._causal = CausalModel(model)
        chunk_rows = chunk_rows or CHUNK_ROWS * self._causal.place.growth
        self._chunk_rows = chunk_rows
        require_finite(model)
        self._trained: Trained = trainable.attach(model, seed, invocation)
        self.parameters = self._trained.parameters
        self._reload = reload
        self._perturbation = perturbation
        policy = reuse or Auto()
        arithmetic = arithmetic_of(compute_dtype, model, one_pass=perturbation == "tandem" and not policy.approximate)
        self._paired = arithmetic if isinstance(arithmetic, Paired) else None
        lane_by_lane = self.parameters if perturbation == "tandem" else None
        self._tandem = Tandem(model, lane_by_lane, self._trained.adapters, arithmetic)
        self._inplace = self._place()
        self._base_hash = hash_of(model)
        if policy.approximate and perturbation == "inplace":
            raise ModelError(_ONE_LANE)
        if policy.caution:
            _warn(policy.caution)
        self._ledger = Ledger.of(self._base_hash, self._causal, self._trained)
        self._sharing = SharingByBlock(policy, self._ledger, self._causal.depth, self._trained.activated)
        trial = PackingCheck.of(self._causal, max(self._sharing.cuts))
        if not trial.packs and max(self._sharing.cuts) and (whole := PackingCheck.of(self._causal, 0)).packs:
            _warn(f"the layers of {type(model).__name__} cannot run apart ({trial.reason}); reuse.policy is 'exact'")
            policy, trial = Exact(budget=policy.budget, page_size=policy.page_size), whole
            self._sharing = replace(self._sharing, policy=policy)
        self.packs, self.reason = trial.packs, trial.reason
        self._prepacked = Prepacked(model, output_layer(model), low=self._paired is not None)
        self._scorer: PackedScorer | None = None
        if trial.packs:
            cuts = self._sharing.cuts
            states = trial.hidden_bytes if max(cuts) or policy.approximate else 0
            spill, sizes = self._spill(policy), (trial.layer_bytes, states)
            states_only = any(sharing.below for sharing in self._sharing.all)
            self._scorer = PackedScorer.sized(
                self._causal, policy, cuts, *sizes, chunk_rows, spill, states_only=states_only
            )
            self._scorer.passes.linear = None if self._paired is None else self._paired.alone
            base = LaneWeights(self.parameters, self.noise, [BASE])
            self._scorer.narrow = self._tandem.reads_columns and reads_columns(self._causal, self._running(base))
        elif self._paired is not None:
            raise ModelError(
                f"compute_dtype = 'bfloat16' pairs lanes in packed passes, and {type(model).__name__} cannot be packed "
                f"({trial.reason}); load it in bfloat16 (model.dtype), {LEAVE_OUT}"
            )
        else:
            _warn(
                f"{type(model).__name__} does not give the same scores when its batch is packed ({trial.reason}); "
                "sequences run by its own forward instead: exact, but slower, and nothing is reused"
            )

    def _spill(self, policy: Policy) -> Spill | None:
        folder = getattr(policy, "spill", None)
        if folder is None:
            return None
        config = self.model.config.to_dict()
        same = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
        products = "own" if self._paired is None else "bfloat16"
        dtype = f"{self.model.dtype}, products {products}"
        identity = {"base": self._base_hash, "dtype": dtype, "config": digest(same)}
        return Spill(expand(folder), identity, self._causal.depth)

    @property
    def base_hash(self) -> str:
        return self._base_hash

    @property
    def trained(self) -> int:
        return self.parameters.numel

    @property
    def invocation(self) -> tuple[int, ...]:
        """The tokens that activate an activated adapter; none for other weights."""
        return () if self._trained.adapter is None else self._trained.adapter.invocation

    @property
    def window(self) -> int | None:
        """The longest input the model takes, where its configuration says."""
        return self._causal.window

    @property
    def cache_slot_bytes(self) -> int:
        """Bytes that one token's keys and values take in the cache; 0 where there is none."""
        return 0 if self._scorer is None else self._scorer.slot_bytes

    @property
    def takes_spans(self) -> bool:
        return self._scorer is not None

    @property
    def resolution(self) -> float:
        return float(torch.finfo(self.model.dtype).eps)

    @property
    def layers(self) -> int:
        return self._causal.depth

    def effective_eps(self, eps: float) -> float:
        return eps if self._inplace is None else power_of_two(eps)

    def score(self, requests: Sequence[Request], lanes: Sequence[Lane], spans: Spans | None = None) -> Scores:
        require_fit(requests, self.window, self._causal.vocabulary, activated=self._trained.activated)
        if not requests or not lanes:
            return Scores([[] for _ in lanes], Work())
        if any(lane.linear for lane in lanes):
            return self._score_linear(requests, lanes)
        if self._scorer is None:
            lanes, spans = [lane.exact for lane in lanes], None
        self._require_spans(lanes, spans)
        if self._inplace is None:
            result = self._pass(requests, lanes, lanes, spans)
        else:
            result = Result([])
            for lane in lanes:
                self._inplace.move_to(lane)
                part = self._pass(requests, [BASE], [lane])
                result.values += part.values
                result.work += part.work
        held = Held() if self._scorer is None else self._scorer.held
        return Scores(result.values, result.work, held, result.prefix)

    def generate(self, prompts: Sequence[Prompt], lanes: Sequence[Lane], sampling: Sampling, decode: Decode) -> Texts:
        require_room(prompts, sampling, self.window, self._causal.vocabulary, activated=self._trained.activated)
        if any(lane.linear or lane.prefix != "own" for lane in lanes):
            raise ModelError("texts are written under exact lanes: use an exact policy, and no derivatives")
        if not prompts or not lanes:
            return Texts([[] for _ in lanes], Work())
        if self._inplace is None:
            values, work = self._write(prompts, lanes, lanes, sampling, decode)
        else:
            values, work = [], Work()
            for lane in lanes:
                self._inplace.move_to(lane)
                own, took = self._write(prompts, [BASE], [lane], sampling, decode)
                values += own
                work += took
        return Texts(values, work, Held() if self._scorer is None else self._scorer.held)

    def _write(
        self,
        prompts: Sequence[Prompt],
        lanes: Sequence[Lane],
        versions: Sequence[Lane],
        sampling: Sampling,
        decode: Decode,
    ) -> tuple[list[list[Text]], Work]:
        """``[lane][prompt]`` texts of ``lanes`` over the weights in memory, which are together ``versions``."""
        if self._scorer is None:
            return self._write_plain(prompts, lanes, sampling, decode)
        used: dict[tuple[Lane, ...], LaneWeights] = {}
        own = [self._ledger.lane(lane) for lane in versions]
        order = Order(prompts, own, self._running_of(lanes, used), sampling, decode, self._shared_by(versions))
        found = PackedWriter(self._scorer).write(order)
        self._tandem.check(used.values())
        return found

    def _write_plain(
        self, prompts: Sequence[Prompt], lanes: Sequence[Lane], sampling: Sampling, decode: Decode
    ) -> tuple[list[list[Text]], Work]:
        starts = [prompt.active_from if self._trained.activated else 0 for prompt in prompts]
        values, work = [], Work()
        for lane in lanes:
            weights = LaneWeights(self.parameters, self.noise, [lane])
            texts, ran = write_plain(self._causal, prompts, starts, self._running(weights), sampling, decode)
            self._tandem.check([weights])
            values.append(texts)
            demand = sum(len(prompt.tokens) + len(text.tokens) - 1 for prompt, text in zip(prompts, texts, strict=True))
            depth = self._causal.depth
            work += Work(depth * demand, depth * ran, {"again": depth * (demand - ran)})
        return values, work

    def _score_linear(self, requests: Sequence[Request], lanes: Sequence[Lane]) -> Scores:
        if not all(lane.linear and lane.probe for lane in lanes):
            raise ModelError("linear lanes are scored on their own: score the others in another call")
        self.settle()
        self.unpack()
        starts = [request.active_from if self._trained.activated else 0 for request in requests]
        adapters = self._trained.loras
        values = score_linear(self._causal, self.parameters, adapters, self.noise, requests, starts, lanes)
        rows = len(lanes) * self._causal.depth * sum(len(request.inputs) for request in requests)
        return Scores(values, Work(rows, rows))

    def gradient(self, requests: Sequence[Request], slopes: Slopes) -> Gradient:
        self._require_descent()
        require_fit(requests, self.window, self._causal.vocabulary, activated=self._trained.activated)
        found = self._descent.gradient(requests, slopes)
        held = Held() if self._scorer is None else self._scorer.held
        return replace(found, scores=replace(found.scores, cache=held))

    def graph_bytes(self, requests: Sequence[Request]) -> int:
        self._require_descent()
        require_fit(requests, self.window, self._causal.vocabulary, activated=self._trained.activated)
        return self._descent.graph_bytes(requests)

    def _require_descent(self) -> None:
        if self._inplace is not None or self._paired is not None:
            raise ModelError(
                "gradients are of float weights as they are: leave perturbation = 'inplace' and compute_dtype out"
            )

    @cached_property
    def _descent(self) -> Descent:
        return Descent(
            self._causal,
            self._trained,
            self._scorer,
            score=lambda requests: self.score(requests, [BASE]),
            version=lambda: self._ledger.lane(BASE),
            shared_by_lanes=lambda: self._sharing.shared_by_lanes({None}),
            rows=self._chunk_rows,
        )

    def descend(self, gradient: Gradient, step: AdamStep) -> None:
        self._moved({None})
        self._descent.moments.move(self.parameters, gradient.tensors, gradient.norm, step)

    def store(self, file: Path) -> str:
        return self._descent.moments.store(self.parameters, file)

    def restore(self, file: Path) -> str:
        self._moved({None})
        return self._descent.moments.restore(self.parameters, file)

    def _require_spans(self, lanes: Sequence[Lane], spans: Spans | None) -> None:
        if spans is None and all(lane.prefix == "own" for lane in lanes):
            return
        if spans is None:
            raise ModelError(
                "a lane takes its prefix from elsewhere, but no spans say where: give both, as a plan has them"
            )
        if self._inplace is not None:
            raise ModelError(_ONE_LANE)
        if self._paired is not None:
            raise ModelError(
                f"compute_dtype = 'bfloat16' pairs lanes, each of which computes its own prefix: use an exact policy, {LEAVE_OUT}"
            )
        if self._sharing.all:
            raise ModelError(
                "what is trained leaves tokens or layers alone that are shared exactly; plan with that policy"
            )

    def _pass(
        self,
        requests: Sequence[Request],
        lanes: Sequence[Lane],
        versions: Sequence[Lane],
        spans: Spans | None = None,
        observer: Observer | None = None,
    ) -> Result:
        """``[lane][request]`` scores of ``lanes`` over the weights in memory, which are together ``versions``."""
        if self._scorer is None:
            return self._pass_plain(requests, lanes)
        used: dict[tuple[Lane, ...], LaneWeights] = {}
        own = [self._ledger.lane(lane) for lane in versions]
        job = Job(requests, own, self._running_of(lanes, used), self._shared_by(versions), spans, observer=observer)
        result = self._scorer.score(job)
        self._tandem.check(used.values())
        return result

    def _running_of(self, lanes: Sequence[Lane], used: dict[tuple[Lane, ...], LaneWeights]) -> RunningOf:
        """What makes the model compute some weights versions; ``used`` takes note of the lanes."""

        def running_of(which: Sequence[WeightsVersion]) -> Running:
            chosen = tuple(lanes if self._inplace is not None else [version.lane for version in which])
            return self._running(used.setdefault(chosen, LaneWeights(self.parameters, self.noise, chosen)))

        return running_of

    def _shared_by(self, lanes: Sequence[Lane]) -> SharedByLanes | None:
        return self._sharing.shared_by_lanes({lane.probe.block for lane in lanes if lane.probe is not None} or {None})

    def _pass_plain(self, requests: Sequence[Request], lanes: Sequence[Lane]) -> Result:
        starts = [request.active_from if self._trained.activated else 0 for request in requests]
        values = []
        for lane in lanes:
            weights = LaneWeights(self.parameters, self.noise, [lane])
            values.append(score_plain(self._causal, requests, starts, self._running(weights)))
            self._tandem.check([weights])
        rows = len(lanes) * self._causal.depth * sum(len(request.inputs) for request in requests)
        return Result(values, Work(rows, rows))

    def _running(self, weights: LaneWeights) -> Running:
        return lambda layout: self._tandem.running(weights, layout)

    def observe(self, requests: Sequence[Request], slopes: Slopes) -> Observed:
        result, observer, errors = self._watch(requests, slopes)
        scale = float(observer.states().double().norm(dim=-1).mean())
        return Observed(observer.inputs(), errors, scale, result.work)

    def feedback(self, requests: Sequence[Request], slopes: Slopes) -> Gradient:
        if unfit := self.unfit_for_feedback():
            raise ModelError(unfit)
        result, observer, errors = self._watch(requests, slopes)
        found = fed_back(observer.inputs(), errors, self.parameters, self._trained.loras)
        held = Held() if self._scorer is None else self._scorer.held
        return Gradient(Scores(result.values, result.work, held), norm(found), found)

    def unfit_for_feedback(self) -> str | None:
        if self._inplace is not None or self._paired is not None:
            return "feedback is for float weights as they are: leave perturbation = 'inplace' and compute_dtype out"
        return unfit(self._causal, self._trained.loras) or (None if self._scorer is not None else self._unpacked)

    @property
    def _unpacked(self) -> str:
        return (
            f"what enters modules is seen in packed passes, which {type(self.model).__name__} does not run in ({self.reason}); "
            "use trainable.kind = 'activated' and estimator.kind = 'backprop' or 'spsa'"
        )

    def _watch(self, requests: Sequence[Request], slopes: Slopes) -> tuple[Result, Observer, Tensor]:
        """Scores of the base lane, what entered the adapters' modules, and the error at the last layer [N, size]."""
        require_fit(requests, self.window, self._causal.vocabulary, activated=self._trained.activated)
        if self._scorer is None:
            raise ModelError(self._unpacked)
        observer = Observer(self._causal, tuple(self._trained.adapters))
        result = self._pass(requests, [BASE], [BASE], observer=observer)
        running = self._running(LaneWeights(self.parameters, self.noise, [BASE]))
        return result, observer, observer.errors(slopes(result.values[0]), running)

    @property
    def outputs(self) -> Tensor | None:
        adapter = self._trained.adapter
        return adapter.outputs if isinstance(adapter, InformedAdapter) else None

    def use(self, space: Space) -> None:
        if not isinstance(self._trained.adapter, InformedAdapter):
            raise ModelError("what is trained takes no directions; use trainable.kind = 'informed'")
        self._moved({None})
        self._trained.adapter.use(space)

    @property
    def keeps(self) -> bool:
        return self._scorer is not None and any(sharing.kept for sharing in self._sharing.all)

    def warm(self, requests: Sequence[Request], probes: Sequence[Probe], since: Set[int | None]) -> None:
        if self._scorer is None:
            return
        shared_by_lanes = self._sharing.shared_by_lanes({probe.block for probe in probes} or {None})
        if shared_by_lanes is not None and not self._ledger.changes_below(shared_by_lanes.version.layers, since):
            self.settle()
            self._scorer.warm(requests, shared_by_lanes)

    def update(self, terms: Sequence[Term]) -> None:
        self._moved({term.block for term in terms}, terms)
        if self._inplace is None:
            self.parameters.add(terms, self.noise)
        else:
            self._inplace.update(terms)

    def _moved(self, blocks: Set[int | None], terms: Sequence[Term] | None = None) -> None:
        """The weights are about to change: what was computed with them is forgotten, or moves along ``terms``."""
        base = self._ledger.lane(BASE)
        stale = self._ledger.change(blocks)
        if self._scorer is not None:
            self._scorer.forget([base, *stale])
            if terms is None:
                self._scorer.prefixes.drop()
            else:
                self._scorer.move(terms, self._ledger.lane(Lane(prefix="base")))

    def settle(self) -> None:
        """Bring the weights in memory to ``theta``, with every update applied (they wait in in-place mode)."""
        if self._inplace is not None:
            self._inplace.settle()

    def reset(self) -> None:
        self._moved({None})
        self.__dict__.pop("_descent", None)
        if self._trained.adapter is not None:
            self._trained.adapter.reset()
        elif self._reload is not None:
            self.parameters.copy_from(self._reload())
        else:
            raise ModelError("the base weights are not at hand: give the engine a 'reload' function, or a model path")
        self._inplace = self._place()

    def _place(self) -> InPlaceWeights | None:
        return InPlaceWeights(Lattice(self.parameters, self.noise)) if self._perturbation == "inplace" else None

    def prepack(self) -> None:
        """Hold the linear layers that adapters stand beside in the blocks oneDNN computes with, for faster products.

        The model is of no use elsewhere until :meth:`unpack`; where it would not run itself any more, or is trained itself, it
        stays as it is.
        """
        if self.packs and self._trained.adapter is not None:
            self._prepacked.pack()
            if self._paired is not None:
                self._paired.forget()
            if not still_runs(
                self._causal, max(self._sharing.cuts), None if self._paired is None else self._paired.alone
            ):
                self.unpack()

    def unpack(self) -> None:
        """Make every weight of the model an ordinary tensor again."""
        self._prepacked.unpack()

    def fault(self) -> str | None:
        self.settle()
        return next((name for name, tensor in self.parameters.items() if not bool(torch.isfinite(tensor).all())), None)

    def save(self, run: Path) -> Path:
        self.settle()
        return self._trained.save(self.model, run, self._tokenizer)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
