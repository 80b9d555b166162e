"""Text and pictures find people in a folder of pedestrian crops."""
