"""haikugate: suites."""
