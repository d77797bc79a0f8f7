"""The API key of a server, which nothing shows: no message, log or traceback."""

import os
from collections.abc import Generator

import httpx

from twinpass.engine.sglang.address import KEY
from twinpass.errors import EngineError

SHOWN = "[API key]"


class ApiKey(httpx.Auth):
    """A key that goes along with every request. It is handed on as this object, so that no variable of a traceback holds its text."""

    def __init__(self, text: str) -> None:
        self._text = text

    @classmethod
    def read(cls) -> "ApiKey | None":
        """The key in the environment variable :data:`KEY`, if there is one.

        Raises:
            EngineError: it has characters that cannot be sent in a header.
        """
        key = cls(os.environ.get(KEY, ""))
        if not key._text:
            return None
        if not key._sendable:
            raise EngineError(
                f"the API key in the environment variable {KEY} holds a space, a line's end or another character that no HTTP header can "
                f"carry; set it anew, without what may have come along when it was copied (its text is not shown here)"
            )
        return key

    @property
    def _sendable(self) -> bool:
        return all("!" <= character <= "~" for character in self._text)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Put the key into a request."""
        request.headers["Authorization"] = f"Bearer {self._text}"
        yield request

    def redacted(self, message: str) -> str:
        """A message without the key, should somebody else have put it there."""
        return message.replace(self._text, SHOWN)

    def __repr__(self) -> str:
        return SHOWN
