"""Looking for failures and shrinking them: delta debugging, and random configurations.

What failing means is passed in: an oracle. Its verdicts are kept on disk, so a search that was killed goes on
without asking twice.
"""
