"""Measuring chat models: the miniature's judge, and intervals for what it finds."""
