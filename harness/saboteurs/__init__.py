"""Engines that cheat, each in one way: the harness is tested against every one of them."""
