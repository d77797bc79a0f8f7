"""What a user cannot choose when SGLang is started."""

from collections.abc import Mapping
from types import MappingProxyType

FIXED: Mapping[str, str] = MappingProxyType(
    {
        "model_path": "use [model] path",
        "tokenizer_path": "use [model] path",
        "dtype": "use [model] dtype",
        "trust_remote_code": "use [model] trust_remote_code",
        "device": "use [engine] device",
        "page_size": "use [reuse] page_size",
        "max_total_tokens": "use [reuse] budget, in bytes of keys and values",
        "disable_radix_cache": "prefixes come from it",
        "enable_lora": "lanes are adapters",
        "lora_paths": "lanes are adapters, loaded as they are needed",
        "lora_target_modules": "use [trainable] targets",
        "max_lora_rank": "use [trainable] rank",
        "max_loras_per_batch": "it follows from [estimator] probes",
        "api_key": "nothing is served; leave it out",
        "admin_api_key": "nothing is served; leave it out",
        "skip_server_warmup": "twinpass makes its own checks",
    }
)
"""Arguments of ``sgl.Engine`` that follow from the rest of a configuration."""
