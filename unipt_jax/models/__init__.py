"""Encoders and heads, as Flax Linen modules with pure `apply`."""
