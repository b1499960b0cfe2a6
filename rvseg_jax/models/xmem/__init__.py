"""XMem: video object segmentation with sensory, working and long-term memory (Cheng and Schwing 2022)."""
