"""How tests start SGLang."""

from pathlib import Path
from typing import Any

from twinpass.engine.sglang.server import CPU

HOOKS = Path(__file__).parent / "engines" / "sglang" / "hooks"
ARGUMENTS: dict[str, Any] = {
    **CPU,
    "dtype": "float32",
    "log_level": "warning",
    "max_total_tokens": 8192,
    "context_length": 1024,
    "max_lora_rank": 8,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "max_loras_per_batch": 6,
}
