"""Solvers: each takes the problems it says it takes, and the driver knows none by name."""
