"""What plots of several packages have in common: fonts < style."""
