"""What every room stands on: errors, files, randomness, trees, sharding and several processes."""
