"""A CPU emulator for compiled sm_90a PTX with a happens-before and proxy checker (README.md)."""
