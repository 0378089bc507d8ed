"""Rename tables from published checkpoints to fpjax parameters, one module a source."""
