"""One module a publisher: what it recognises, its renaming table, its configuration."""
