"""The CPU engines: the host's KVM, and a software CPU in this process.

What both promise is in :mod:`kvmkit.engine.engine`, the CPU state they share in
:mod:`kvmkit.engine.cpu`. Nothing in this room knows a device or an address map.
"""
