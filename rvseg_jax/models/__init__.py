"""Model parts, one folder a model; a model knows no system, mesh or config file."""
