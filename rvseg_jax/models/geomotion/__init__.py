"""GeoMotion: moving pixels from latent geometry and optical flow (He et al. 2026, arXiv 2602.21810)."""
