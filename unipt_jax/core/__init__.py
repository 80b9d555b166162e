"""What every room stands on: errors, files, randomness, trees, precision and sharding."""
