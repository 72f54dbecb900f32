"""Speed as ratios: A and B in turn in one run, with the machine and the versions printed.

``python -m bench`` runs all, ``python -m bench NAME...`` some. Results that were kept are in bench/README.md.
"""
