"""Pi3: points, cameras and confidence of the frames of a video, in any order (Wang et al. 2025, arXiv 2507.13347)."""
