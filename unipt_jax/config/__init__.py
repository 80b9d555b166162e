"""Configurations: the schema, the loader and the command line."""
