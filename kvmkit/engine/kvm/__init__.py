"""The host's KVM: its whole interface, owners of its descriptors, and the engine on top.

``abi``, ``structs`` and its part ``run_structs`` (what starting a VM takes) are
generated from the kernel's headers; ``kvm`` has
``System``, ``Vm`` and ``VcpuFd``, which know nothing of kvmkit's boards and serve
anybody who drives ``/dev/kvm``; ``engine`` keeps the promise of
:mod:`kvmkit.engine.engine`. Nothing in here knows a device or an address map.
"""
