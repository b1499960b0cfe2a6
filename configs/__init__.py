"""Training recipes as ml_collections configs."""
