"""How good an architecture is, and how far that number can be trusted."""
