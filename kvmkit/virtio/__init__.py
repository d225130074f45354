"""Virtio devices: the rings, the transports, then one file per device.

Virtual I/O Device (VIRTIO) version 1.2, OASIS committee specification. What is
here knows no engine, no thread and no file descriptor: a device is handed guest
memory, a way to interrupt, and a backend. Everything a guest puts into a ring
is checked; a ring that breaks the rules puts its device into the state
DEVICE_NEEDS_RESET with a reason that is logged.

``memory`` and ``chain`` are what a device sees of the guest's buffers, ``queue``
and ``packed`` the two formats of rings, ``device`` the base class, ``transport``
what all transports share, ``pci`` and ``mmio`` the transports.
"""
