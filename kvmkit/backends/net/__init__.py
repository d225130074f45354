"""Networks: what a network card of a guest is plugged into.

Each keeps the promise of :class:`kvmkit.virtio.net_backend.NetBackend`: ``stream``
(frames on a socket), ``passt`` (the host's network, without privileges), ``tap`` (an
interface of the host), ``switch`` (other VMs of this process).
"""
