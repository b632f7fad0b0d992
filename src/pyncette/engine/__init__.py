"""One worker: claims what is due, runs it, and writes what came of it."""
