"""Rules that find in objects what LTO breaks, before the link and after it. Knows no linking and no terminal."""
