"""Data sets and 8-bit image files."""
