"""Checks datasets on disk: that every file that the lists name is there, can be read, and fits the others."""

from rvseg_jax.input_pipeline.checks.dataset import NAMES, check_dataset
from rvseg_jax.input_pipeline.checks.report import Report

__all__ = ["NAMES", "Report", "check_dataset"]
