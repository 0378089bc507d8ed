"""Recipes that made the bundled models: data sets, training, release."""
