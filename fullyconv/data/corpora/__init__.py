"""Readers: one file a corpus or layout, each returning a `Dataset`; what class tables and stored values mean."""
