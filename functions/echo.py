"""Answer each message with itself, byte for byte, until one says `stop` or the input ends. No arguments."""

# /// script
# requires-python = ">=3.11"
# dependencies = []
# [tool.bento]
# entry = "echo"
# image = "python"
# ///


def echo():
    while True:
        try:
            message = api.recv()
        except EOFError:
            return
        if message.strip() == b"stop":
            return
        api.send(message)
