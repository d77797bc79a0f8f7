"""The embedded engine: a Hugging Face model in this process, on the CPU or on one CUDA device."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.core import BASE, Continuations, Decode, Lane, Probe, Prompt, Request, Sampling, Scores, Term, Work
from twinpass.engine.base import AdamStep, Engine, Gradient, RelativeStep, Slopes, require_fit, require_room
from twinpass.engine.embedded.builder import CHUNK_ROWS, parts_of, placed
from twinpass.engine.embedded.descent.descent import Descent
from twinpass.engine.embedded.descent.feedback import fed, fed_back, norm, unfinished, unfit
from twinpass.engine.embedded.descent.graph import linear_by, no_gradient
from twinpass.engine.embedded.routes import InPlaceRoute, Linearised, Route, Under, require_spans
from twinpass.engine.embedded.scoring.jobs import Result
from twinpass.engine.embedded.scoring.observe import Observer
from twinpass.engine.embedded.scoring.packing_check import still_runs
from twinpass.errors import ModelError
from twinpass.model.causal import CausalModel
from twinpass.model.informed import InformedAdapter
from twinpass.model.space import Observed, Space
from twinpass.model.trainable import Trainable
from twinpass.perturb.lattice import power_of_two
from twinpass.perturb.noise import Distribution
from twinpass.phases import phase
from twinpass.reuse.auto import Auto
from twinpass.reuse.base import Policy
from twinpass.reuse.plan import Spans
from twinpass.settings import ComputeDtype, Perturbation


class TorchEngine(Engine):
    """Score and train a causal language model.

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
        model.train(False)
        self.model, self._tokenizer, self._reload = model, tokenizer, reload
        self.noise, self._perturbation = noise, perturbation
        self._causal = causal = CausalModel(model)
        self._chunk_rows = chunk_rows or CHUNK_ROWS * causal.device.growth
        self._trained = trainable.attach(model, seed, invocation)
        parts = parts_of(
            causal,
            self._trained,
            noise=noise,
            perturbation=perturbation,
            policy=reuse or Auto(),
            chunk_rows=self._chunk_rows,
            compute_dtype=compute_dtype,
        )
        self._base_hash, self._ledger, self._sharing = parts.base_hash, parts.ledger, parts.sharing
        self._runner, self._route, self._scorer = parts.runner, parts.route, parts.scorer
        self._inplace, self._paired, self._prepacked = parts.inplace, parts.paired, parts.prepacked
        self.reason, self._own_prefixes = parts.reason, parts.own_prefixes
        self.packs, self.parameters = parts.scorer is not None, self._trained.parameters

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
            linearised = Linearised(self._runner, self._causal, lanes)
            self.settle()
            self.unpack()
            return linearised.score(requests)
        if self._scorer is None:
            lanes, spans = [lane.exact for lane in lanes], None
        require_spans(lanes, spans, self._own_prefixes)
        result = self._of_lanes.score(requests, Under.tandem(lanes), spans)
        return Scores(result.values, result.work, self._route.held, result.prefix)

    def generate(
        self, prompts: Sequence[Prompt], lanes: Sequence[Lane], sampling: Sampling, decode: Decode
    ) -> Continuations:
        require_room(prompts, sampling, self.window, self._causal.vocabulary, activated=self._trained.activated)
        if any(lane.linear or lane.prefix != "own" for lane in lanes):
            raise ModelError("texts are written under exact lanes: use an exact policy, and no derivatives")
        if not prompts or not lanes:
            return Continuations([[] for _ in lanes], Work())
        values, work = self._of_lanes.write(prompts, Under.tandem(lanes), sampling, decode)
        return Continuations(values, work, self._route.held)

    @property
    def _of_lanes(self) -> Route:
        """How lanes run: together, or one after another where the weights walk."""
        return self._route if self._inplace is None else InPlaceRoute(self._route, self._inplace)

    def gradient(self, requests: Sequence[Request], slopes: Slopes) -> Gradient:
        require_fit(requests, self.window, self._causal.vocabulary, activated=self._trained.activated)
        found = self._descent.gradient(requests, slopes)
        return replace(found, scores=replace(found.scores, cache=self._route.held))

    def graph_bytes(self, requests: Sequence[Request]) -> int:
        require_fit(requests, self.window, self._causal.vocabulary, activated=self._trained.activated)
        return self._descent.graph_bytes(requests)

    @property
    def _no_gradient(self) -> str | None:
        return no_gradient(self._trained, self._paired, walking=self._inplace is not None)

    @cached_property
    def _descent(self) -> Descent:
        if refusal := self._no_gradient:
            raise ModelError(refusal)
        return Descent(
            self._causal,
            self._trained,
            self._scorer,
            score=lambda requests: self.score(requests, [BASE]),
            version=lambda: self._ledger.lane(BASE),
            shared_by_lanes=lambda: self._sharing.shared_by_lanes({None}),
            rows=self._chunk_rows,
            linear=linear_by(self._paired),
        )

    def descend(self, gradient: Gradient, step: AdamStep | RelativeStep) -> None:
        self._moved({None})
        self._descent.descend(gradient, step)

    def store(self, file: Path) -> str:
        return self._descent.moments.store(self.parameters, file)

    def restore(self, file: Path) -> str:
        self._moved({None})
        return self._descent.moments.restore(self.parameters, file)

    def observe(self, requests: Sequence[Request], slopes: Slopes) -> Observed:
        result, observer, errors = self._watch(requests, slopes)
        return observer.observed(errors, result.work)

    def feedback(self, requests: Sequence[Request], slopes: Slopes) -> Gradient:
        if (unfit := self.unfit_for_feedback()) or self._scorer is None:
            raise ModelError(unfit or self._unpacked)
        self._scorer.forget([self._ledger.lane(BASE)])  # what was kept of it, a run that is resumed has not
        result, observer, errors = self._watch(requests, slopes)
        found = fed_back(observer.inputs(), observer.written(errors), self._trained)
        return Gradient(Scores(result.values, result.work, self._route.held), norm(found), found)

    def reference(self, requests: Sequence[Request]) -> Scores:
        self._runner.require_base()
        require_fit(requests, self.window, self._causal.vocabulary, activated=self._trained.activated)
        result = self._route.reference(requests)
        return Scores(result.values, result.work, self._route.held)

    def generate_reference(self, prompts: Sequence[Prompt], sampling: Sampling, decode: Decode) -> Continuations:
        """What the model writes without the adapters that stand beside it."""
        self._runner.require_base()
        require_room(prompts, sampling, self.window, self._causal.vocabulary, activated=False)
        return Continuations(*self._route.write_reference(prompts, sampling, decode), self._route.held)

    def unfit_for_feedback(self) -> str | None:
        reason = self._no_gradient or unfit(self._causal, self._trained)
        scorer = self._scorer
        return reason or (self._unpacked if scorer is None else unfinished(self._causal, scorer.passes.linear))

    @property
    def _unpacked(self) -> str:
        adapters = "trainable.kind = 'activated' and estimator.kind = 'backprop' or 'spsa'"
        instead = adapters if self._trained.adapters else "estimator.kind = 'spsa', which moves every weight"
        seen = f"what enters modules is seen in packed passes, which {type(self.model).__name__} does not run in"
        return f"{seen} ({self.reason}); use {instead}"

    def _watch(self, requests: Sequence[Request], slopes: Slopes) -> tuple[Result, Observer, Tensor]:
        """Scores of the base lane, what entered the modules that are trained, and the error at the last layer [N, size]."""
        require_fit(requests, self.window, self._causal.vocabulary, activated=self._trained.activated)
        if self._scorer is None:
            raise ModelError(self._unpacked)
        observer = Observer(self._causal, fed(self._trained))
        result = self._route.score(requests, Under.tandem([BASE]), observer=observer)
        running = self._runner.running(self._runner.weights([BASE]))
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

    def warm_prompts(self, prompts: Sequence[Prompt], since: Set[int | None]) -> None:
        shared = None if self._scorer is None else self._sharing.shared_by_lanes({None})
        if shared is None or shared.sharing.below:
            return  # nothing of a prompt outlasts its texts
        before = shared.sharing.tokens == "before_activation"
        read = [Prompt(one.tokens if before else one.tokens[:-1], one.active_from) for one in prompts]
        self.warm([Request(one.tokens, (0,), one.active_from) for one in read if one.tokens], [], since)

    def forget(self) -> None:
        if self._scorer is not None:
            layers = {self._causal.depth, *(own.layers for own in self._sharing.all)}
            self._scorer.forget([self._ledger.lane(BASE), *map(self._ledger.shared, layers)])

    @phase("update")
    def update(self, terms: Sequence[Term]) -> None:
        along = all(term.keep == 1.0 for term in terms)
        self._moved({term.block for term in terms}, terms if along else None)
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
        self._inplace = placed(self._trained, self.noise, self._perturbation)

    def prepack(self) -> None:
        """Hold the linear layers that adapters stand beside in the order that oneDNN reads them in, for faster products.

        It is of no use elsewhere until :meth:`unpack`; where it would not run any more, or is trained itself, it stays as it is.
        """
        if self.packs and self._trained.adapter is not None:
            self._prepacked.pack()
            if (paired := self._paired) is not None:
                paired.forget()
            if not still_runs(self._causal, max(self._sharing.cuts), None if paired is None else paired.alone):
                self.unpack()

    def unpack(self) -> None:
        """Make every weight of the model an ordinary tensor again."""
        self._prepacked.unpack()

    def close(self) -> None:
        self.unpack()
        self.forget()
        if self._scorer is not None:
            self._scorer.prefixes.drop()
            self._scorer.passes.pool.release()

    def fault(self) -> str | None:
        self.settle()
        return next((name for name, tensor in self.parameters.items() if not bool(torch.isfinite(tensor).all())), None)

    def save(self, run: Path) -> Path:
        self.settle()
        return self._trained.save(self.model, run, self._tokenizer)
