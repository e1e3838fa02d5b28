"""haikugate: harness."""
