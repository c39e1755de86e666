"""The protocol between a client and a box: bytes <-> messages, and who may say what when.

No socket, clock, file or thread: `Connection` takes bytes and gives messages, takes messages and gives bytes.
"""
