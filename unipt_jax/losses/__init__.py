"""Losses: arrays in, scalar and metrics out."""
