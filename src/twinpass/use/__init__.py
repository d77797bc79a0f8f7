"""To use what a run has trained."""
