"""Parts of systems as training and the library handle them: their parameters, and small checkpoints of them."""
