"""Generators, autoencoders and diffusion priors as pure functions of plain parameter trees."""
