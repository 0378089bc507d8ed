"""Studies: what directions, strength and key length buy, before and after inverting."""
