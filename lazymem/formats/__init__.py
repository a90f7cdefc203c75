"""Where in a file does an array begin, and what is it? One file per format."""
