"""Floor 6: other libraries on greenpg. Each integration alone imports its own, which an extra of its name installs."""
