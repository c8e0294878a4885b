"""Small sm_90a sample kernels with planted bugs: what the emulator's checker is judged by."""
