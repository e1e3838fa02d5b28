"""haikugate: engine."""
