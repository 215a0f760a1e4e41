"""Folded graphs to other runtimes, and the proofs that they compute the same."""
