"""Faces: a parametric head, two renderers, and the simulator that draws with them."""
