"""The contract of every engine, on real SGLang."""

import pytest
from contracts import engine_contract
from real_sglang import SIGNS, TOLERANCE, Loaded, engines, requests_of

from twinpass.engine.sglang.server import Server


@pytest.mark.parametrize("activated", [False, True])
def test_it_keeps_the_contract(loaded: Loaded, server: Server, activated: bool) -> None:
    _, sglang = engines(loaded, server, activated=activated)
    engine_contract(sglang, requests_of(loaded[1]), SIGNS, near=TOLERANCE)
