"""Simulators that come with simpe, one module a domain."""
