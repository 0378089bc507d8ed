"""How each published source is told apart and planned, one module a source."""
