"""From inverted images to verdicts: who holds the key, or why nobody is named."""
