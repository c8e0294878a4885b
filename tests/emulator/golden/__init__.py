"""Golden vectors: what a real chip answered, kept so that the emulator answers the same for ever."""
