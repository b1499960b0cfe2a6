"""Mask and dataset file layouts, one file a layout."""
