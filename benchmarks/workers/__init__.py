"""One process per engine, each in its own interpreter, driven line by line so that runs interleave."""
