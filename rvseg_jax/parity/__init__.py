"""Comparison with golden files of the original implementations."""
