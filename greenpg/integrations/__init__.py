"""Floor 6: other people's libraries. Each file imports its own, which an extra of the same name installs."""
