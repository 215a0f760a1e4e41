"""Searches that write genotypes. None yet; search spaces already parse and build graphs."""
