"""Tests that need a CUDA device; each is marked gpu and skipped where there is none."""
