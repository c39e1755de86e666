"""What a box is willing to do, what a function asks for, and whether one fits the other. Pure values: no I/O."""
