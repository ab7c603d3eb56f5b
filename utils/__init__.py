"""Everything around the network: files, loops, numbers and people."""
