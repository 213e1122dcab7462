"""Floor 4: the libraries that greenpg succeeds, for programs that change one import. docs/moving.md compares them."""
