"""One module a probe; each has `cases(options)`."""
