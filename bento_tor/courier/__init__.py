"""The courier: carries a function's errands to other boxes, through tor. A process with a user id of its own.

What comes from another box is a stranger's, and so is what a function says; the client that parses both runs in a
process of its own for each errand, with nothing but the function's socket, the stream to that box, and a list of system
calls that opens nothing. Who takes it over has what the function had: its tokens, and its way to that one box. Not the
keeper (it may be root, and holds control connections), not the box (it holds all functions' code and sessions), not the
sandbox: there nothing would stop a function from saying Store, and so from spreading by itself.
"""
