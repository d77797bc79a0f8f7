"""How a metric is written for people: a share in per cent, a reward as the number that it is."""


def shown(name: str, value: float) -> str:
    """The value of the metric ``name``."""
    return f"{value:.3f}" if name in ("reward", "perplexity") else f"{value:.1%}"
