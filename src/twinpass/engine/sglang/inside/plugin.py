"""What SGLang loads in each of its processes: the entry point ``sglang.srt.plugins``."""

import logging

from twinpass.engine.sglang.inside import activated, commands, drawing, terms

TESTED = ("0.5.23",)
"""Versions of SGLang whose internals the hooks fit."""


def register() -> None:
    """Add the hooks; not to another version of SGLang than tested, which its log says."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.version import __version__

    if __version__ not in TESTED:
        logging.getLogger(__name__).warning(
            "twinpass's hooks fit SGLang %s, and this is %s: left out, so that activated adapters act on every token",
            ", ".join(TESTED),
            __version__,
        )
        return
    own = (commands.TARGET, commands.take, "AROUND")
    for target, hook, kind in [*activated.hooks(), *drawing.hooks(), *terms.hooks(), own]:
        HookRegistry.register(target, hook, HookType[kind])
