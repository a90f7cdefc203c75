"""What can the bytes of an array come from? One file each."""
