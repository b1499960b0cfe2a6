"""UMT5 text encoder."""
