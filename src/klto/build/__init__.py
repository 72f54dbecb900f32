"""One build from configuration to proof: configure, compile, link, verify, boot.

Runs the steps of the rooms below and emits events (:mod:`klto.events`); prints nothing.
"""
