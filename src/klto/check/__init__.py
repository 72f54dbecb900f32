"""Rules that find what LTO breaks."""
