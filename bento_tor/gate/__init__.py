"""The gate: the narrow way from a function to the box's own tor. A process with a user id of its own, and fixed verbs.

It alone holds that tor's control connection. What a function asks comes by the box, as typed requests with no text but
a host's name; a function's own bytes meet the gate only as 16-byte tickets, and as streams that it does not look at.
"""
