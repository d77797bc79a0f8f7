"""The negative control, in the last file: SGLang kills all processes below this one when it is shut down, another SGLang's as well."""

from pathlib import Path

import pytest
from real_sglang import ARGUMENTS, SHOTS, SIGNS, Loaded, engines, requests_of, worst

from twinpass.engine.sglang.in_process import InProcess
from twinpass.engine.sglang.server import Server
from twinpass.errors import EngineError


def test_without_the_hooks_scores_are_wrong_and_refused(
    loaded: Loaded, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the same calls to an SGLang that has not loaded the plugin."""
    monkeypatch.setenv("SGLANG_PLUGINS", "none")
    bare = Server(InProcess(str(folder), ARGUMENTS))
    try:
        with pytest.raises(EngineError, match="without twinpass's hooks"):
            bare.require_hooks(adapters=True)
        with pytest.raises(EngineError, match="without twinpass's hooks"):
            engines(loaded, bare, activated=True)
        monkeypatch.setattr(Server, "command", lambda self, do, **arguments: {})  # go on all the same
        embedded, sglang = engines(loaded, bare, activated=True)
        requests = requests_of(loaded[1], SHOTS)
        assert worst(sglang.score(requests, SIGNS).values, embedded.score(requests, SIGNS).values) > 0.05
    finally:
        bare.close()
