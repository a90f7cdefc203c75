"""What holds lazymem up when everything happens at once? Rounds of it, each a process; every byte that is read is compared."""
