"""Floor 6: other libraries' own ways to greenpg. Each folder alone imports its library."""
