"""The commands: one file each; the only place with click, and the only one that prints."""
