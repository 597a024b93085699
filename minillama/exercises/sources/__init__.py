"""The marked sources of the exercises, one file a chapter."""
