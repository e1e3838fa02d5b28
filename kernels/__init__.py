"""haikugate: kernels."""
