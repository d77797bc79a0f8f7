"""The address of a server, and the key to it."""

import ipaddress
from urllib.parse import urlsplit

KEY = "TWINPASS_SGLANG_API_KEY"
"""The environment variable with the server's API key."""


def is_address(url: str) -> bool:
    """Whether a URL names a server: http or https, a host, and perhaps a port and a path."""
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and not parts.query + parts.fragment
        )
    except ValueError:
        return False


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
