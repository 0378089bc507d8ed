"""Published PyTorch weights in, without torch and without executing anything."""
