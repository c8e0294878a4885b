"""The bundled DeepSeek-V3 checkpoint: its data, its training, and the files themselves."""
