"""Fitted directions on real SGLang: the embedded engine's, to the bit, and lanes of their gains as adapters."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from real_sglang import TOLERANCE, Loaded, engines, informed, requests_of, worst

from twinpass.core import BASE, Lane, Probe, Request, Score, Term
from twinpass.engine.base import Engine
from twinpass.engine.sglang.server import Server
from twinpass.estimate.directions import fit
from twinpass.model.space import Space

RANK = 4
LANES = [*(Lane(Probe(seed), sign, 0.1) for seed in (7, 8) for sign in (1, -1)), BASE]
"""A gain of 0.1 moves the residual stream by a hundredth of its norm."""

NEAR = 4 * TOLERANCE
"""Log-probabilities go down to -60 here."""


def asked(loaded: Loaded) -> list[Request]:
    """Requests that an adapter takes part in from the prompt's last token on, as it does where directions are fitted."""
    return [replace(request, active_from=len(request.prompt) - 1) for request in requests_of(loaded[1])]


def less_likely(scores: Sequence[Score]) -> list[Score]:
    """The slopes of a loss that wants every second request likelier."""
    return [np.full(len(score), -1.0 if i % 2 else 0.5) for i, score in enumerate(scores)]


def fitted(engine: Engine, requests: Sequence[Request]) -> Space:
    return fit(engine.observe(requests, less_likely), engine.outputs, rank=RANK)


def test_directions_are_the_embedded_engines_and_so_are_scores_along_them(loaded: Loaded, server: Server) -> None:
    embedded, sglang = informed(loaded, server, RANK)
    requests, before = asked(loaded), set[str]()
    for step in range(2):
        space = fitted(sglang, requests)
        assert space.digest == fitted(embedded, requests).digest
        assert space.digest not in before, "gains of the step before change what is fitted"
        before.add(space.digest)
        for engine in (embedded, sglang):
            engine.use(space)
        ours, theirs = (engine.score(requests, LANES).values for engine in (sglang, embedded))
        assert worst(ours[:1], ours[1:2]) > 0.1, "the signs must differ, or nothing is tested"
        assert worst(ours, theirs) < NEAR
        for engine in (embedded, sglang):
            engine.update([Term(5 + step, 0.1)])
    assert sglang.outputs is not None
    assert 1 < len(sglang.outputs) <= RANK
    for engine in (embedded, sglang):
        engine.reset()
    _, plain = engines(loaded, server, activated=True)
    assert sglang.outputs is None
    assert worst(sglang.score(requests, [BASE]).values, plain.score(requests, [BASE]).values) < TOLERANCE
    sglang.reset()
    plain.reset()
