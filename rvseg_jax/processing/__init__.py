"""Preprocessing of images, text and masks in numpy, equal to the PyTorch processors."""
