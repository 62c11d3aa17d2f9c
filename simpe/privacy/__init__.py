"""Differential privacy: exact noise, accounting for what is really drawn, and the ledger that records it."""
