"""SAM 2 and 2.1: segmentation of prompted objects in images and videos (Ravi et al. 2024, arXiv 2408.00714)."""
