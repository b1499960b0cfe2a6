"""Run configuration, precision, tree paths and logging."""
