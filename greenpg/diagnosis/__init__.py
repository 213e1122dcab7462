"""Floor 6: what is wrong with how a program is set up, and what to do about it. It changes nothing."""
