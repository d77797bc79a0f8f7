"""How a metric is written for people: a share in per cent, a reward as the number that it is."""


def shown(name: str, value: float) -> str:
    """The value of the metric ``name``."""
    return figure(value) if name in ("reward", "perplexity") else f"{value:.1%}"


def figure(value: float) -> str:
    """A number to three decimals, or, where it has more than six digits before them, to three digits."""
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.3g}"
