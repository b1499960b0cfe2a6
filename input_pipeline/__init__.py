"""Data in numpy: sources, datasets, transforms and the Grain loader."""
