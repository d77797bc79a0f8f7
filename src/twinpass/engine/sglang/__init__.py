"""SGLang as an engine: the same training, on its scheduler, its RadixAttention and its adapters."""
