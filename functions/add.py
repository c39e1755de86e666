"""Add two numbers. Arguments: a, b. Sends their sum, as text: `add(5, 12)` sends `17`."""

# /// script
# requires-python = ">=3.11"
# dependencies = []
# [tool.bento]
# entry = "add"
# image = "python"
# ///


def add(a, b):
    return a + b
