"""Policies: which computed state may stand in for which, and what that costs in bias."""
