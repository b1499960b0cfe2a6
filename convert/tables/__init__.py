"""Conversion tables, one file a part or system."""
