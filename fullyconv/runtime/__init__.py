"""Exported files without torch: what an exported file says of itself, and whether it is as it was written."""
