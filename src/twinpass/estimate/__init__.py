"""Estimators turn the losses of lanes into a gradient along probes."""
