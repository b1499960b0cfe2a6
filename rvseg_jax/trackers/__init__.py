"""Trackers: what is clicked, boxed or masked in one frame of a video is followed through the others."""
