"""The VMs of this host: their names and directories, and the QMP socket each has.

A VM claims its name when it starts (:mod:`kvmkit.control.claim`), which costs a
directory, a lock and a bound socket; everything that speaks QMP
(:mod:`kvmkit.control.server` and below) is imported when the first client
connects. The other side, for the command line, is
:mod:`kvmkit.control.listing` and :mod:`kvmkit.control.client`. Nothing here
knows a device or an engine; the VM is reached through :class:`kvmkit.VM`.
"""
