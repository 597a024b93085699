"""The whole road from nothing to a chat model, one command after the other.

plan.py      which commands, with which numbers
runner.py    runs them, each once: what has been made of the same inputs is not made again
results.py   what they came to: a table, stage by stage
report.py    the same as a page, with curves
"""
