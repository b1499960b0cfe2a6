"""The decoder of language models that InternVL and Qwen2.5-VL share: Qwen2.5, InternLM2 and their kin."""
