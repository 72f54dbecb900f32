"""The LTO link."""
