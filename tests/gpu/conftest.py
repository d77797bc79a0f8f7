"""Where Triton cannot be installed (it is for Linux), there is nothing to test."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["test_triton_cuda.py", "test_engine_cuda.py"]
