"""From annotation files to device-ready batches."""
