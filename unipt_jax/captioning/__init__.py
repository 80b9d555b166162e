"""Pseudo texts: what is seen of a pedestrian, put into words (UniPT: divide, conquer, combine)."""
