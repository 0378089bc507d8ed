"""Latents and keys out of images: problems say what is minimised, solvers minimise it."""
