"""Say hello. No arguments; sends one message, `hello world`."""

# /// script
# requires-python = ">=3.11"
# dependencies = []
# [tool.bento]
# entry = "hello"
# image = "python"
# ///


def hello():
    api.send("hello world")
