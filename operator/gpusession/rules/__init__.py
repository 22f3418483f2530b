"""Decide: pure functions from facts to actions. No clock, randomness, I/O or logging."""
