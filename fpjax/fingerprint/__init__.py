"""Bases, keys and schemes: how a key is written into a latent."""
