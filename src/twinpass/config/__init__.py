"""Configuration files, and the one place that composes a run from them."""
