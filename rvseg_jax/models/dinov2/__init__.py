"""DINOv2 with registers (Oquab et al. 2023, arXiv 2304.07193; Darcet et al. 2023, arXiv 2309.16588)."""
