"""Segmentation systems composed from model parts; systems never import each other."""
