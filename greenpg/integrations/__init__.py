"""Floor 6: frameworks on greenpg. Each integration alone imports its framework."""
