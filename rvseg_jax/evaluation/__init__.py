"""Metrics and the evaluation runner."""
