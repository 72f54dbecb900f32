"""The LTO link's backends on other processes and machines: thin link here, code generation on Dask workers,
final link here.

What a worker runs (:mod:`klto.cluster.backend`) and what this machine runs when there are no workers is one and
the same function, so that where a module was compiled cannot be told from its object.
"""
