"""Tests of SGLang run in its own environment: ``make test-sglang``."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("sglang") else ["sglang"]
