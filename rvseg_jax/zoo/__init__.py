"""Bundled tiny weights."""
