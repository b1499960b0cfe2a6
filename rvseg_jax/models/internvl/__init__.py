"""InternVL: a vision transformer whose patches a language model reads."""
