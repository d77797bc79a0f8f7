"""SGLang somewhere else: a server's URL."""

import base64
import pickle
from collections.abc import Mapping
from typing import Any

import httpx
from torch import Tensor

from twinpass.engine.sglang.address import KEY, is_loopback
from twinpass.engine.sglang.inside.plugin import TESTED
from twinpass.engine.sglang.key import ApiKey
from twinpass.engine.sglang.transport import Transport
from twinpass.errors import EngineError


class Http(Transport):
    """A server that was started by somebody else, with twinpass installed beside SGLang.

    Args:
        url: such as ``http://127.0.0.1:30000``. Servers elsewhere than on this machine need an API key in :data:`KEY`.
        timeout: seconds to wait for an answer.

    Raises:
        EngineError: there is no API key or none that can be sent, the server cannot be reached, refuses the key, or is of another version than tested.
    """

    outlives = True

    def __init__(self, url: str, timeout: float) -> None:
        self._key, local = ApiKey.read(), is_loopback(url)
        if not local and self._key is None:
            raise EngineError(f"{url} is not on this machine: put its API key into the environment variable {KEY}")
        self._url = url.rstrip("/")
        self.place = f"SGLang at {self._url}"
        self._client = httpx.Client(base_url=self._url, auth=self._key, timeout=timeout, trust_env=not local)
        self._facts = self._mapping("/server_info", self._ask("GET", "/server_info"))
        if (version := self._facts.get("version")) not in TESTED:
            self.close()
            raise self._error(
                f"{self._url} runs SGLang {version}; twinpass's hooks were made to fit {', '.join(TESTED)}"
            )

    def generate(self, **arguments: Any) -> list[dict[str, Any]]:
        content = {{"prompt": "text"}.get(name, name): value for name, value in arguments.items()}
        found = self._ask("POST", "/generate", content)
        return [self._mapping("/generate", answer) for answer in (found if isinstance(found, list) else [found])]

    def load_adapter(self, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str | None:
        # by value: SGLang's own serialiser shares memory, which only processes of one family can
        content = base64.b64encode(pickle.dumps({key: tensor.clone() for key, tensor in tensors.items()})).decode()
        copies = [content] * int(self._facts.get("tp_size") or 1)
        request = {"lora_name": name, "config_dict": dict(config), "serialized_named_tensors": copies}
        return self._objection(self._told("/load_lora_adapter_from_tensors", request))

    def unload_adapter(self, name: str) -> str | None:
        return self._objection(self._told("/unload_lora_adapter", {"lora_name": name}))

    def command(self, text: str) -> tuple[bool, str]:
        nothing = base64.b64encode(pickle.dumps([])).decode()
        request = {"serialized_named_tensors": [nothing], "load_format": text}
        found = self._told("/update_weights_from_tensor", request)
        return bool(found.get("success")), self._redacted(str(found.get("message")))

    def facts(self) -> Mapping[str, Any]:
        return self._facts

    def close(self) -> None:
        self._client.close()

    def _told(self, path: str, content: Any) -> dict[str, Any]:
        return self._mapping(path, self._ask("POST", path, content, refusals=True))

    def _mapping(self, path: str, found: Any) -> dict[str, Any]:
        if not isinstance(found, dict):
            raise self._error(f"{self._url}{path} answered {str(found)[:200]!r} (is it an SGLang server?)")
        return found

    def _objection(self, found: Mapping[str, Any]) -> str | None:
        return None if found.get("success") else self._redacted(str(found.get("error_message") or found))

    def _redacted(self, message: str) -> str:
        return message if self._key is None else self._key.redacted(message)

    def _error(self, message: str) -> EngineError:
        return EngineError(self._redacted(message))

    def _ask(self, method: str, path: str, content: Any = None, *, refusals: bool = False) -> Any:
        """The server's answer, as JSON; ``refusals`` (status 400) are answers too."""
        try:
            response = self._client.request(method, path, json=content)
            response.read()
        except httpx.TimeoutException as error:
            raise self._error(
                f"{self._url}{path} gave no answer within {self._client.timeout.read:g} s; raise [engine] timeout if it is only slow. "
                "The journal is intact: continue with 'twinpass train --resume RUN'"
            ) from error
        except httpx.HTTPError as error:
            raise self._error(
                f"{self._url}{path} cannot be reached ({type(error).__name__}: {error}); start the server, or check [engine] url. "
                "A run that had begun continues with 'twinpass train --resume RUN'"
            ) from error
        if response.status_code in (401, 403):
            raise self._error(f"{self._url} refuses the API key; put the right one into {KEY}")
        if response.status_code != httpx.codes.OK and not (
            refusals and response.status_code == httpx.codes.BAD_REQUEST
        ):
            raise self._error(
                f"{self._url}{path} failed with status {response.status_code} (is it an SGLang server?): {response.text[:500]}"
            )
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise self._error(
                f"{self._url}{path} answered what is no JSON (is it an SGLang server?): {response.text[:200]!r}"
            ) from error
