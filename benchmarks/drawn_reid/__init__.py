"""A benchmark of drawn pedestrians; `README.md` tells of it."""
