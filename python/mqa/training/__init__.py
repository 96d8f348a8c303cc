"""Training of decoders: on random pieces of a text, in steps that repeat bit by bit."""
