"""Schedules of the learning rate and of eps, as pure functions of the step."""
