"""Plots of a bundle as SVG, drawn by matplotlib with fixed ids, so that bytes repeat."""

from harness.bundle_reader import BundleReader


def draw_plots(bundle: BundleReader) -> dict[str, bytes]:
    """The plots by bundle path."""
    return {}
