"""MLLMSeg: masks from what a vision-language model has seen and said."""
