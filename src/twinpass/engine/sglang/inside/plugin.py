"""What SGLang loads in each of its processes: the entry point ``sglang.srt.plugins``."""

from twinpass.engine.sglang.inside import activated, commands, drawing, terms

TESTED = ("0.5.23",)
"""Versions of SGLang whose internals the hooks fit."""


def register() -> None:
    """Add the hooks; not to another version of SGLang than tested."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.version import __version__

    if __version__ not in TESTED:
        return
    own = (commands.TARGET, commands.take, "AROUND")
    for target, hook, kind in [*activated.hooks(), *drawing.hooks(), *terms.hooks(), own]:
        HookRegistry.register(target, hook, HookType[kind])
